"""The two ONNX graphs of `lite`, built node by node from the published weights.

`minilm.onnx` holds no weights: its initializers point into `model.safetensors`, which lies beside
it. `lite0.onnx` holds its weights as float16, with batch normalisation folded into the
convolutions; a cast to float32 follows each weight, so the arithmetic is float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
WEIGHTS_NAME = "model.safetensors"

LAYERS, HEADS, WIDTH = 6, 12, 384
NORM_EPSILON = 1e-12
MASKED = -1e9

BATCH_NORM_EPSILON = 1e-3
IMAGE_SIZE = 224
# repeats, kernel, stride, expansion, input channels, output channels
BLOCKS = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)

Array = NDArray[Any]


@dataclass
class Graph:
    """Nodes and initializers under construction; `add` names each output after its node."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        output = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, values: Array) -> str:
        """Append an initializer, once per name, and return its name."""
        if all(tensor.name != name for tensor in self.initializers):
            self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(self.nodes, "lite", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mmesh"
        )


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` so that equal models are equal bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


# --- MiniLM -------------------------------------------------------------------------------------


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the tensor table of a safetensors file and the offset where its data begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def external(name: str, entry: Mapping[str, Any], base: int) -> onnx.TensorProto:
    """Return an initializer whose float32 values lie in the safetensors file."""
    begin, end = entry["data_offsets"]
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=entry["shape"])
    tensor.data_location = TensorProto.EXTERNAL
    where = {"location": WEIGHTS_NAME, "offset": base + begin, "length": end - begin}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def minilm(weights: Path) -> onnx.ModelProto:
    """Return the graph of MiniLM: `input_ids`, `attention_mask` to `last_hidden_state`."""
    graph = Graph()
    state = _embeddings(graph)
    mask = _attention_bias(graph)
    for layer in range(LAYERS):
        state = _layer(graph, f"encoder.layer.{layer}", state, mask)
    graph.add("Identity", state, name="last_hidden_state")
    _declare_weights(graph, weights)
    ids = [_int64(name) for name in ("input_ids", "attention_mask")]
    shape: list[str | int] = ["batch", "length", WIDTH]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, shape)
    return graph.model(ids, [output])


def _int64(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])


def _declare_weights(graph: Graph, weights: Path) -> None:
    table, base = safetensors_header(weights)
    used = {name for node in graph.nodes for name in node.input}
    names = sorted(used & table.keys())
    graph.initializers += [external(name, table[name], base) for name in names]


def _embeddings(graph: Graph) -> str:
    zero = graph.constant("zero", np.array([0], np.int64))
    one = graph.constant("one", np.array([1], np.int64))
    words = graph.add("Gather", "embeddings.word_embeddings.weight", "input_ids")
    length = graph.add("Slice", graph.add("Shape", "input_ids"), one, _two(graph))
    places = graph.add("Slice", "embeddings.position_embeddings.weight", zero, length)
    kind = graph.add("Slice", "embeddings.token_type_embeddings.weight", zero, one)
    both = graph.add("Add", words, graph.add("Add", places, kind))
    return _norm(graph, "embeddings.LayerNorm", both)


def _two(graph: Graph) -> str:
    return graph.constant("two", np.array([2], np.int64))


def _attention_bias(graph: Graph) -> str:
    """Return 0 where a token is and a huge negative number where padding is, (n, 1, 1, t)."""
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    gap = graph.add("Sub", graph.constant("unit", np.array(1, np.float32)), mask)
    bias = graph.add("Mul", gap, graph.constant("masked", np.array(MASKED, np.float32)))
    return graph.add("Unsqueeze", bias, graph.constant("axes", np.array([1, 2], np.int64)))


def _layer(graph: Graph, prefix: str, state: str, mask: str) -> str:
    seen = _attention(graph, f"{prefix}.attention", state, mask)
    seen = _dense(graph, f"{prefix}.attention.output.dense", seen)
    state = _norm(graph, f"{prefix}.attention.output.LayerNorm", graph.add("Add", seen, state))
    inner = _gelu(graph, _dense(graph, f"{prefix}.intermediate.dense", state))
    outer = _dense(graph, f"{prefix}.output.dense", inner)
    return _norm(graph, f"{prefix}.output.LayerNorm", graph.add("Add", outer, state))


def _attention(graph: Graph, prefix: str, state: str, mask: str) -> str:
    query = _split(graph, _dense(graph, f"{prefix}.self.query", state), [0, 2, 1, 3])
    key = _split(graph, _dense(graph, f"{prefix}.self.key", state), [0, 2, 3, 1])
    value = _split(graph, _dense(graph, f"{prefix}.self.value", state), [0, 2, 1, 3])
    scale = graph.constant("scale", np.array((WIDTH / HEADS) ** -0.5, np.float32))
    scores = graph.add("Mul", graph.add("MatMul", query, key), scale)
    share = graph.add("Softmax", graph.add("Add", scores, mask), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", share, value), perm=[0, 2, 1, 3])
    joined = graph.constant("joined", np.array([0, 0, WIDTH], np.int64))
    return graph.add("Reshape", mixed, joined)


def _split(graph: Graph, state: str, order: list[int]) -> str:
    shape = graph.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
    return graph.add("Transpose", graph.add("Reshape", state, shape), perm=order)


def _dense(graph: Graph, prefix: str, state: str) -> str:
    weight = graph.add("Transpose", f"{prefix}.weight", perm=[1, 0])
    return graph.add("Add", graph.add("MatMul", state, weight), f"{prefix}.bias")


def _norm(graph: Graph, prefix: str, state: str) -> str:
    names = (f"{prefix}.weight", f"{prefix}.bias")
    return graph.add("LayerNormalization", state, *names, axis=-1, epsilon=NORM_EPSILON)


def _gelu(graph: Graph, state: str) -> str:
    root = graph.constant("root_two", np.array(2**0.5, np.float32))
    erf = graph.add("Erf", graph.add("Div", state, root))
    half = graph.add("Mul", state, graph.constant("half", np.array(0.5, np.float32)))
    return graph.add("Mul", half, graph.add("Add", erf, "unit"))


# --- EfficientNet-Lite0 -------------------------------------------------------------------------


def lite0(weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Return the graph of EfficientNet-Lite0: `pixels` (n, 3, 224, 224) to two outputs.

    `features` is the pooled last layer (n, 1280); `logits` are its ImageNet classes (n, 1000).
    """
    graph = Graph()
    state = _convolution(graph, weights, "_conv_stem", "_bn0", "pixels", 3, 2, IMAGE_SIZE)
    state = _blocks(graph, weights, graph.add("Clip", state, *_six(graph)))
    state = _convolution(graph, weights, "_conv_head", "_bn1", state, 1, 1, 7)
    pooled = graph.add("GlobalAveragePool", graph.add("Clip", state, *_six(graph)))
    features = graph.add("Flatten", pooled, name="features")
    matrix = _float16(graph, "_fc.weight", weights["_fc.weight"])
    bias = graph.constant("_fc.bias", weights["_fc.bias"])
    graph.add("Gemm", features, matrix, bias, name="logits", transB=1)
    return graph.model([_floats("pixels", 3, IMAGE_SIZE, IMAGE_SIZE)], _lite0_outputs())


def _lite0_outputs() -> list[onnx.ValueInfoProto]:
    return [_floats("features", 1280), _floats("logits", 1000)]


def _floats(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def _six(graph: Graph) -> tuple[str, str]:
    low = graph.constant("low", np.array(0, np.float32))
    return low, graph.constant("high", np.array(6, np.float32))


def _blocks(graph: Graph, weights: Mapping[str, Array], state: str) -> str:
    number, size = 0, IMAGE_SIZE // 2
    for repeats, kernel, stride, expansion, _, _ in BLOCKS:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            new = _block(graph, weights, f"_blocks.{number}", state, kernel, step, expansion, size)
            state = graph.add("Add", new, state) if repeat else new
            number, size = number + 1, size // step
    return state


def _block(
    graph: Graph,
    weights: Mapping[str, Array],
    prefix: str,
    state: str,
    kernel: int,
    stride: int,
    expansion: int,
    size: int,
) -> str:
    if expansion > 1:
        state = _convolution(
            graph, weights, f"{prefix}._expand_conv", f"{prefix}._bn0", state, 1, 1, size
        )
        state = graph.add("Clip", state, *_six(graph))
    state = _convolution(
        graph, weights, f"{prefix}._depthwise_conv", f"{prefix}._bn1", state, kernel, stride, size
    )
    state = graph.add("Clip", state, *_six(graph))
    return _convolution(
        graph, weights, f"{prefix}._project_conv", f"{prefix}._bn2", state, 1, 1, size
    )


def _convolution(
    graph: Graph,
    weights: Mapping[str, Array],
    name: str,
    norm: str,
    state: str,
    kernel: int,
    stride: int,
    size: int,
) -> str:
    weight, bias = folded(weights, name, norm)
    groups = weight.shape[0] if weight.shape[1] == 1 else 1
    return graph.add(
        "Conv",
        state,
        _float16(graph, f"{name}.weight", weight),
        graph.constant(f"{name}.bias", bias),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=same_padding(size, kernel, stride),
        group=groups,
    )


def folded(weights: Mapping[str, Array], name: str, norm: str) -> tuple[Array, Array]:
    """Return weight and bias of a convolution with its batch normalisation folded in."""
    spread = np.sqrt(weights[f"{norm}.running_var"].astype(np.float64) + BATCH_NORM_EPSILON)
    gain = weights[f"{norm}.weight"] / spread
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
    weight = weights[f"{name}.weight"] * gain[:, None, None, None]
    return weight.astype(np.float32), bias.astype(np.float32)


def same_padding(size: int, kernel: int, stride: int) -> list[int]:
    """Return the padding that TensorFlow's SAME mode gives: the odd pixel at the end."""
    steps = -(-size // stride)
    total = max((steps - 1) * stride + kernel - size, 0)
    return [total // 2, total // 2, total - total // 2, total - total // 2]


def _float16(graph: Graph, name: str, values: Array) -> str:
    stored = graph.constant(f"{name}.float16", values.astype(np.float16))
    return graph.add("Cast", stored, to=TensorProto.FLOAT)
