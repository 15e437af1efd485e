"""Encoders of real sizes with random weights, made on the device, so that nothing is downloaded.

Weights are drawn so that states keep their size from layer to layer: then inputs that differ get
vectors that differ, and rounding shows as it does in trained models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmesh.content import Modality
from mmesh.models import probes
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.encoders.families import EncoderChoice
from mmesh.models.encoders.packed import Decoder
from mmesh.models.protocol import EncoderInfo, EncoderModel, Prepared
from mmesh.models.torch_runtime import Compiling, Runtime
from mmesh.testing import tiny_models

TINY = "tiny"
_QWEN: dict[str, dict[str, Any]] = {
    "qwen3-vl-embedding-2b": {
        "text": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
                 "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16,
                   "out_hidden_size": 2048, "deepstack_visual_indexes": [5, 11, 17]},
    },
    "qwen3-vl-embedding-8b": {
        "text": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        "vision": {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16,
                   "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]},
    },
    TINY: {
        "text": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
                 "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64},
        "vision": {"hidden_size": 64, "intermediate_size": 128, "depth": 3, "num_heads": 2,
                   "out_hidden_size": 128, "deepstack_visual_indexes": [0, 1]},
    },
}  # fmt: skip
"""Sizes in the config.json of Qwen3-VL-Embedding-2B and -8B, as published."""
_MROPE = {TINY: [12, 10, 10]}
_BERT = {
    "minilm-l6": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
                  "num_attention_heads": 12, "vocab_size": 30_528,
                  "max_position_embeddings": 512},
    TINY: {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
           "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 512},
}  # fmt: skip
_CLIP = {
    "clip-vit-l-14": {
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                 "num_attention_heads": 12, "vocab_size": 49_408},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                   "num_attention_heads": 16, "image_size": 224, "patch_size": 14},
        "projection": 768,
    },
    TINY: {
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
                 "num_attention_heads": 4, "vocab_size": 1024},
        "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
                   "num_attention_heads": 4, "image_size": 56, "patch_size": 14},
        "projection": 48,
    },
}  # fmt: skip
_MM_EMBED: dict[str, dict[str, Any]] = {
    "mm-embed-7b": {
        "retriever": "nvidia/NV-Embed-v1",
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
    },
    TINY: {},
}


@dataclass(frozen=True, slots=True)
class Sized:
    """An encoder and the arithmetic that its inputs take."""

    name: str
    model: EncoderModel
    network: Any = field(repr=False)
    flops: Callable[[Prepared], float]
    """Floating-point operations of one input: two for each multiply and add; what padding and
    masked attention take does not count."""


@contextmanager
def opened(
    name: str, *, small: bool, device: str, dtype: str, compiling: Compiling = "auto"
) -> Iterator[Sized]:
    """Yield a model by name, at a size that suits a CPU if `small`."""
    runtime = Runtime(device, dtype, threads=torch.get_num_threads(), compiling=compiling)
    with tempfile.TemporaryDirectory() as folder:
        sized = _MAKERS[name](name, TINY if small else name, Path(folder), runtime)
    if runtime.passes > 1:
        probes.warm_up(sized.model)
    yield sized
    del sized
    if runtime.is_cuda:
        torch.cuda.empty_cache()


def names() -> list[str]:
    """Return the models that there are, the fastest to make first."""
    return list(_MAKERS)


def _made(runtime: Runtime, make: Callable[[], Any]) -> Any:
    """Return a network of random weights on the device, in the element type."""
    from transformers.initialization import no_init_weights

    usual = torch.get_default_dtype()
    torch.set_default_dtype(runtime.dtype)
    try:
        with no_init_weights(), torch.device(runtime.device):
            network = make()
    finally:
        torch.set_default_dtype(usual)
    generator = torch.Generator(runtime.device).manual_seed(0)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            _draw(module, name, parameter.data, generator)
    return runtime.placed(network)


def _draw(module: Any, name: str, values: torch.Tensor, generator: torch.Generator) -> None:
    if name.endswith("bias"):
        values.zero_()
    elif values.ndim < 2:
        values.fill_(1.0)
    elif isinstance(module, torch.nn.Embedding):
        values.normal_(generator=generator)
    else:
        values.normal_(std=values[0].numel() ** -0.5, generator=generator)


def _parameters(*parts: Any) -> int:
    return sum(p.numel() for part in parts for p in part.parameters() if p.ndim >= 2)


def _info(name: str, dim: int, runtime: Runtime, **more: Any) -> EncoderInfo:
    return EncoderInfo(
        name=name,
        fingerprint=f"{name}-random-{runtime.dtype_name}",
        dim=dim,
        modalities=more.pop("modalities", frozenset(Modality)),
        max_text_tokens=more.pop("max_text_tokens", 8192),
        follows_instructions=True,
        passes=runtime.passes,
        **more,
    )


def _qwen(name: str, size: str, folder: Path, runtime: Runtime) -> Sized:
    declare_torchvision_operators()
    import transformers

    from mmesh.models.encoders.qwen3_vl_embedding import Chat, Qwen3VLEmbedding
    from mmesh.models.encoders.qwen3_vl_network import Qwen3VLNetwork

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models.build_tiny_qwen3_vl(folder))
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    text, vision = (
        config[part] | _QWEN[size][part.split("_")[0]] for part in ("text_config", "vision_config")
    )
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
    rope["mrope_section"] = _MROPE.get(size, [24, 20, 20])
    text |= {
        "vocab_size": 151_936 if size != TINY else text["vocab_size"],
        "max_position_embeddings": 32_768,
        "rope_parameters": rope,
    }
    vision |= {"num_position_embeddings": 2304}
    config |= {"text_config": text, "vision_config": vision}
    made = _made(
        runtime, lambda: transformers.Qwen3VLModel(transformers.Qwen3VLConfig.from_dict(config))
    )
    network = Qwen3VLNetwork(made, runtime)
    chat = Chat(tokenizer, 8192, 0)
    model = Qwen3VLEmbedding(
        network, chat, runtime, _info(name, text["hidden_size"], runtime, packs=True)
    )
    layers, blocks = _parameters(made.language_model.layers), _parameters(made.visual.blocks)
    mergers = _parameters(made.visual.merger, made.visual.deepstack_merger_list)
    heads = text["num_attention_heads"] * text["head_dim"] * text["num_hidden_layers"]
    seen = vision["hidden_size"] * vision["depth"]

    def flops(prepared: Prepared) -> float:
        length = len(prepared.payload.ids)
        total = 2.0 * layers * length + 2.0 * heads * length**2  # half is masked
        for down, across in prepared.payload.grids:
            patches = down * across
            total += 2.0 * (blocks + mergers / 4) * patches + 4.0 * seen * patches**2
        return total

    return Sized(name, model, made, flops)


def _mm_embed(name: str, size: str, folder: Path, runtime: Runtime) -> Sized:
    declare_torchvision_operators()
    import transformers

    from mmesh.models.encoders import mm_embed
    from mmesh.models.encoders.mm_embed_network import MMEmbedNetwork, read_architecture

    tiny_models.build_tiny_mm_embed(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    sizes = _MM_EMBED[size]
    if "retriever" in sizes:
        config["retriever"] = sizes["retriever"]
    config["vision_config"] |= sizes.get("vision", {})
    architecture = read_architecture(config)
    network = _made(runtime, lambda: MMEmbedNetwork(architecture))
    network.decode = Decoder(network.language_model, causal=False, fused=runtime.fused)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    writer = mm_embed.PromptWriter(
        tokenizer, architecture.image_token, architecture.image_tokens, 4096
    )
    view = mm_embed.GlobalView(architecture.image_side, [0.48, 0.46, 0.41], [0.27, 0.26, 0.28])
    info = _info(name, architecture.dim, runtime, packs=True, max_text_tokens=4096)
    model = mm_embed.MMEmbedEncoder(network, writer, view, runtime, info)
    language = architecture.llava.text_config
    pooling = network.pooling
    layers = _parameters(network.language_model.layers) + _parameters(
        pooling.to_queries, pooling.to_tokens, pooling.widen, pooling.narrow
    )
    width = int(language.num_hidden_layers) * int(language.hidden_size)
    latents = architecture.latents * architecture.heads * architecture.head_dim
    tower = _tower_flops(architecture.llava.vision_config)
    projector = 2.0 * _parameters(network.multi_modal_projector) * architecture.image_tokens

    def flops(prepared: Prepared) -> float:
        length = len(prepared.payload.prompt.ids)
        total = (2.0 * layers + 4.0 * latents) * length + 4.0 * width * length**2
        return total + (tower + projector if prepared.payload.pixels is not None else 0.0)

    return Sized(name, model, network, flops)


def _tower_flops(config: Any, places: int = 0) -> float:
    """Return the operations of a tower of CLIP on one picture, or on a text of so many tokens."""
    places = places or (int(config.image_size) // int(config.patch_size)) ** 2 + 1
    width, inner = int(config.hidden_size), int(config.intermediate_size)
    layer = 2.0 * (4 * width**2 + 2 * width * inner) * places + 4.0 * width * places**2
    return float(int(config.num_hidden_layers) * layer)


def _clip(name: str, size: str, folder: Path, runtime: Runtime) -> Sized:
    declare_torchvision_operators()
    import transformers

    from mmesh.models.encoders.clip_fusion import ClipFusion, Towers

    sizes = _CLIP[size]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models.build_tiny_clip(folder))
    ids = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")
    }
    config = transformers.CLIPConfig(
        text_config=sizes["text"] | ids | {"max_position_embeddings": 77},
        vision_config=sizes["vision"],
        projection_dim=sizes["projection"],
    )
    made = _made(runtime, lambda: transformers.CLIPModel(config))
    side = sizes["vision"]["image_size"]
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    towers = Towers(config, tokenizer, processor, 0)
    info = _info(name, sizes["projection"], runtime, max_text_tokens=77)
    picture = _tower_flops(config.vision_config)

    def flops(prepared: Prepared) -> float:
        tokens = prepared.payload.tokens
        words = _tower_flops(config.text_config, len(tokens.ids)) if tokens else 0.0
        return words + picture * len(prepared.payload.pictures)

    return Sized(name, ClipFusion(made, towers, runtime, info), made, flops)


def _minilm(name: str, size: str, folder: Path, runtime: Runtime) -> Sized:
    declare_torchvision_operators()
    import sentence_transformers
    import transformers
    from sentence_transformers.sentence_transformer import modules

    from mmesh.models.encoders.sentence_transformers import load

    tiny_models.build_tiny_sentence_transformer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 512
    config = transformers.BertConfig(**_BERT[size])
    real = folder / "real"
    _made(Runtime(), lambda: transformers.BertModel(config)).save_pretrained(real)
    tokenizer.save_pretrained(real)
    layers = [modules.Transformer(str(real)), modules.Pooling(config.hidden_size, "mean")]
    saved = sentence_transformers.SentenceTransformer(
        modules=[*layers, modules.Normalize()], device="cpu"
    )
    saved.save(str(folder / "saved"), create_model_card=False)
    choice = EncoderChoice(
        str(folder / "saved"), device=str(runtime.device), dtype=runtime.dtype_name
    )
    model = load(folder / "saved", choice)

    def flops(prepared: Prepared) -> float:
        return _tower_flops(config, prepared.payload["input_ids"].shape[1])

    return Sized(name, model, None, flops)


_Maker = Callable[[str, str, Path, Runtime], Sized]
_MAKERS: Mapping[str, _Maker] = {
    "qwen3-vl-embedding-2b": _qwen,
    "qwen3-vl-embedding-8b": _qwen,
    "mm-embed-7b": _mm_embed,
    "clip-vit-l-14": _clip,
    "minilm-l6": _minilm,
}
