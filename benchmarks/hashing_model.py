"""An encoder that costs next to nothing: the mean of random vectors of a text's words.

It is a folder of `lite` with another text tower, a table in place of MiniLM, which the encoder
service serves as it serves what `mmesh train` made:

    python benchmarks/hashing_model.py FOLDER

For benchmarks of what stands before and behind the encoder. Texts that share words are near each
other, so searches have something to find.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from mmesh.models.encoders.lite import artefacts
from mmesh.models.encoders.lite.text import WIDTH

VOCABULARY = 30_522
"""Tokens that the tokenizer knows."""
_COPIED = (
    artefacts.TOKENIZER,
    artefacts.IMAGE_GRAPH,
    artefacts.HEAD,
    artefacts.CLASSES,
    artefacts.VOCABULARY,
)


def lay_out(folder: Path, seed: int) -> Path:
    """Write the model into a new folder and return that."""
    folder.mkdir(parents=True)
    for name in _COPIED:
        shutil.copyfile(artefacts.DATA / name, folder / name)
    _write_table(folder / artefacts.TEXT_GRAPH, seed)
    # An empty safetensors file: the weights are in the graph.
    (folder / artefacts.TEXT_WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "config.json").write_text(json.dumps({"model_type": artefacts.MODEL_TYPE}))
    names = (*_COPIED, artefacts.TEXT_GRAPH, artefacts.TEXT_WEIGHTS)
    files = {name: artefacts.sha256_of(folder / name) for name in names}
    (folder / artefacts.MANIFEST).write_text(json.dumps({"name": "hashing", "files": files}))
    return folder


def _write_table(path: Path, seed: int) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(seed)
    table = random.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n", "t"])
    states = helper.make_tensor_value_info(
        "last_hidden_state", TensorProto.FLOAT, ["n", "t", WIDTH]
    )
    looked_up = helper.make_node("Gather", ["table", "kept_ids"], ["last_hidden_state"])
    kept = helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept_ids"])
    graph = helper.make_graph(
        [kept, looked_up], "table", [ids, mask], [states], [numpy_helper.from_array(table, "table")]
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main() -> None:
    """Lay the model out where the command line says."""
    parser = argparse.ArgumentParser(description="Write the model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print(lay_out(options.folder, options.seed))


if __name__ == "__main__":
    main()
