"""Builds tiny models of real architecture with random weights, so nothing has to be downloaded.

They answer nonsense, but through the same code as the real ones:

    python -m mmesh.testing.tiny_models qwen3-vl DIRECTORY
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmesh.models.compat import declare_torchvision_operators

CONTEXT_TOKENS = 4096
_HIDDEN = 128
_WORDS = (
    "True False yes no true false system user assistant Task Query Candidate Answer or the a of "
    "text pictures both judge search results find candidate that answers query fulfil task red "
    "green blue square circle line on black white ground cat dog house tree photo drawing"
)
_QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_LLAVA_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
_CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
_BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_PICTURE = {"image_size": 56, "patch_size": 14}
_QWEN_CHAT = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}{{ '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\\n' }}{%- endif -%}
"""
_LLAVA_CHAT = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}<<SYS>>{{ '\\n' }}
{%- else -%}[INST]{{ ' ' }}{%- endif -%}
{%- for part in message.content if part.type == 'image' -%}<image>{{ '\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- if message.role == 'system' -%}{{ '\\n' }}<</SYS>>{{ '\\n\\n' }}
{%- else -%}{{ ' ' }}[/INST]{%- endif -%}
{%- endfor -%}
"""


def build_tiny_qwen3_vl(directory: Path, seed: int = 0) -> Path:
    """Write a Qwen3-VL of 1 M random parameters, with tokenizer and processor; return `directory`.

    The same seed gives the same weights.
    """
    declare_torchvision_operators()
    import transformers

    tokenizer = _tokenizer(_QWEN_SPECIALS, eos="<|im_end|>", pad="<|endoftext|>")
    config = transformers.Qwen3VLConfig(**_qwen_config(tokenizer))
    _save_weights(transformers.Qwen3VLForConditionalGeneration, config, directory, seed)
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(
            **patches,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256},  # both count pixels
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(**patches),
        chat_template=_QWEN_CHAT,
    ).save_pretrained(directory)
    return directory


def build_tiny_qwen3_vl_reranker(directory: Path, seed: int = 0) -> Path:
    """Write a Qwen3-VL as `build_tiny_qwen3_vl` does, declared a reranker as the published ones."""
    build_tiny_qwen3_vl(directory, seed)
    head = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    modules = [{"idx": 1, "name": "1", "path": "1_LogitScore", "type": head}]
    (directory / "modules.json").write_text(json.dumps(modules))
    return directory


def build_tiny_jina_reranker(directory: Path, seed: int = 0) -> Path:
    """Write a jina-reranker-m0 of 0.9 M random parameters: a Qwen2-VL and a head of two layers."""
    declare_torchvision_operators()
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    tokenizer = _tokenizer(_QWEN_SPECIALS, eos="<|im_end|>", pad="<|endoftext|>")
    config = transformers.Qwen2VLConfig(**_qwen2_config(tokenizer))
    _save_weights(transformers.Qwen2VLForConditionalGeneration, config, directory, seed)
    weights = load_file(directory / "model.safetensors")
    random = torch.Generator().manual_seed(seed)
    for name, rows in (("score.0", _HIDDEN), ("score.2", 1)):
        weights[f"{name}.weight"] = torch.randn(rows, _HIDDEN, generator=random) / _HIDDEN**0.5
        weights[f"{name}.bias"] = torch.randn(rows, generator=random)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    declared = json.loads((directory / "config.json").read_text())
    declared["architectures"] = ["JinaVLForRanking"]
    (directory / "config.json").write_text(json.dumps(declared))
    transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=_QWEN_CHAT,
    ).save_pretrained(directory)
    return directory


def build_tiny_llava_next(directory: Path, seed: int = 0) -> Path:
    """Write a LLaVA-NeXT of 0.6 M random parameters, as `build_tiny_qwen3_vl` does.

    Its chat template puts pictures first, takes content in parts only, and its tokenizer adds BOS.
    """
    declare_torchvision_operators()
    import transformers

    tokenizer = _with_bos(_tokenizer(_LLAVA_SPECIALS, eos="</s>", pad="<pad>", bos="<s>"))
    grid = [[56, 112], [112, 56], [112, 112]]
    config = transformers.LlavaNextConfig(**_llava_config(tokenizer, grid))
    _save_weights(transformers.LlavaNextForConditionalGeneration, config, directory, seed)
    _rename_vision_tower(directory / "model.safetensors")
    transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 56},
            crop_size={"height": 56, "width": 56},
            image_grid_pinpoints=grid,
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_CHAT,
    ).save_pretrained(directory)
    return directory


def build_tiny_clip(directory: Path, seed: int = 0) -> Path:
    """Write a CLIP of 0.2 M random parameters that reads 77 tokens, one for each byte."""
    declare_torchvision_operators()
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *_CLIP_SPECIALS]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    )
    ids = {
        "vocab_size": len(words),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = transformers.CLIPConfig(
        text_config=_TOWER | ids, vision_config=_TOWER | _PICTURE, projection_dim=48
    )
    _save_weights(transformers.CLIPModel, config, directory, seed)
    transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
        ),
        tokenizer,
    ).save_pretrained(directory)
    return directory


def build_tiny_siglip(directory: Path, seed: int = 0) -> Path:
    """Write a SigLIP of 0.2 M random parameters, which reads 64 tokens of SentencePiece."""
    declare_torchvision_operators()
    import transformers

    tokenizer = transformers.SiglipTokenizer(
        str(_sentence_pieces(directory)), model_max_length=64, model_input_names=["input_ids"]
    )
    config = transformers.SiglipConfig(
        text_config=_siglip_text(tokenizer),
        vision_config=_TOWER | _PICTURE,
    )
    _save_weights(transformers.SiglipModel, config, directory, seed)
    transformers.SiglipProcessor(
        transformers.SiglipImageProcessor(size={"height": 56, "width": 56}), tokenizer
    ).save_pretrained(directory)
    return directory


def build_tiny_siglip2(directory: Path, seed: int = 0) -> Path:
    """Write a SigLIP 2 of 0.2 M random parameters; pictures keep their shape, in 256 patches."""
    declare_torchvision_operators()
    import transformers

    tokenizer = _siglip2_tokenizer()
    config = transformers.Siglip2Config(
        text_config=_siglip_text(tokenizer),
        vision_config=_TOWER | {"patch_size": 16, "num_patches": 16},
    )
    _save_weights(transformers.Siglip2Model, config, directory, seed)
    transformers.Siglip2Processor(transformers.Siglip2ImageProcessor(), tokenizer).save_pretrained(
        directory
    )
    return directory


def build_tiny_sentence_transformer(directory: Path, seed: int = 0, **settings: Any) -> Path:
    """Write a sentence-transformers BERT of 0.3 M random parameters, which reads 128 tokens.

    `settings` are those of `SentenceTransformer`, such as `prompts`.
    """
    declare_torchvision_operators()
    import sentence_transformers
    import transformers
    from sentence_transformers.sentence_transformer import modules

    tokenizer = _word_pieces()
    config = transformers.BertConfig(
        **_TOWER, vocab_size=_vocabulary(tokenizer), max_position_embeddings=128
    )
    _save_weights(transformers.BertModel, config, directory, seed)
    tokenizer.save_pretrained(directory)
    network = modules.Transformer(str(directory))
    pooling = modules.Pooling(_TOWER["hidden_size"], pooling_mode="mean")
    sentence_transformers.SentenceTransformer(
        modules=[network, pooling, modules.Normalize()], device="cpu", **settings
    ).save(str(directory), create_model_card=False)
    return directory


def build_tiny_mm_embed(directory: Path, seed: int = 0) -> Path:
    """Write an MM-Embed of 0.4 M random parameters, as `build_tiny_qwen3_vl` does.

    As in the published folder, the tensors have the names of the code that they were trained with,
    `<image>` has no row among the embeddings, and `text_config` is not the language model's.
    """
    declare_torchvision_operators()
    import torch
    from safetensors.torch import save_file

    from mmesh.models.encoders.mm_embed_network import (
        MMEmbedNetwork,
        published_name,
        read_architecture,
    )

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _llama_tokenizer()
    tokenizer.save_pretrained(directory)
    config = _mm_embed_config(tokenizer)
    (directory / "config.json").write_text(json.dumps(config))
    pixels = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (directory / "preprocessor_config.json").write_text(json.dumps(pixels))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MMEmbedNetwork(read_architecture(config))
    weights = {published_name(name): value.data for name, value in network.named_parameters()}
    for value in weights.values():
        value.mul_(4.0 if value.ndim >= 2 else 1.0)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _tokenizer(specials: Sequence[str], **roles: str) -> Any:
    """Train a byte-level BPE in which each of `_WORDS` is one token, at the start of a line too."""
    import tokenizers
    import transformers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1024,
        show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[
            tokenizers.AddedToken(text, special=True, normalized=False) for text in specials
        ],
    )
    trained.train_from_iterator([_WORDS, *_WORDS.split()] * 200, trainer)
    names = {f"{role}_token": token for role, token in roles.items()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, model_max_length=CONTEXT_TOKENS, **names
    )


def _with_bos(tokenizer: Any) -> Any:
    import tokenizers

    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def _llama_tokenizer() -> Any:
    """Return a BPE with SentencePiece's rules: `\u2581` for spaces, bytes for other scripts."""
    import tokenizers
    import transformers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=256, show_progress=False)
    trained.train_from_iterator([_WORDS, "Instruct: Query:"] * 20, trainer)
    pieces = json.loads(trained.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces["vocab"]]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=[tuple(pair) for pair in pieces["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    return _with_bos(tokenizer)


def _siglip_text(tokenizer: Any) -> dict[str, Any]:
    return _TOWER | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 64,
        "projection_size": _TOWER["hidden_size"],
    }


def _sentence_pieces(directory: Path) -> Path:
    """Train the SentencePiece model that a SigLIP tokenizer opens; `</s>` also pads."""
    import sentencepiece

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "spiece.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([_WORDS.lower(), *_WORDS.lower().split()] * 20),
            model_writer=file,
            vocab_size=128,
            hard_vocab_limit=False,
            bos_id=-1,
            minloglevel=2,
        )
    return path


def _siglip2_tokenizer() -> Any:
    """Return a tokenizer with a token for each byte, which puts `<eos>` after a text."""
    import tokenizers
    import transformers

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        padding_side="right",
        model_input_names=["input_ids"],
    )
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    return tokenizer


def _word_pieces() -> Any:
    """Return BERT's tokenizer with `_WORDS`, letters and digits as its vocabulary."""
    import string

    import transformers

    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = [*_WORDS.lower().split(), *letters, *(f"##{letter}" for letter in letters)]
    numbers = {word: number for number, word in enumerate(dict.fromkeys([*_BERT_SPECIALS, *words]))}
    return transformers.BertTokenizer(vocab=numbers, model_max_length=128)


def _vocabulary(tokenizer: Any) -> int:
    return (len(tokenizer) + 63) // 64 * 64


def _text_config(tokenizer: Any) -> dict[str, Any]:
    """Return what both decoders share; vLLM's CPU kernels need `head_dim` 32, 64, 80 or more."""
    return {
        "vocab_size": _vocabulary(tokenizer),
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": CONTEXT_TOKENS,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _qwen_config(tokenizer: Any) -> dict[str, Any]:
    rope = {
        "rope_type": "default",
        "rope_theta": 5e5,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    }
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": _HIDDEN,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [0, 1],
    }
    ids = tokenizer.convert_tokens_to_ids
    return {
        "text_config": _text_config(tokenizer)
        | {"tie_word_embeddings": True, "rope_parameters": rope}
        | {"bos_token_id": tokenizer.pad_token_id},
        "vision_config": vision,
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": True,
    }


def _qwen2_config(tokenizer: Any) -> dict[str, Any]:
    """Return what differs from Qwen3-VL: another vision tower, and biases in the decoder."""
    vision = {
        "depth": 3,
        "embed_dim": 64,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "hidden_size": _HIDDEN,
    }
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10]}
    shared = _qwen_config(tokenizer)
    text = {name: value for name, value in shared["text_config"].items() if name != "head_dim"}
    return shared | {"text_config": text | {"rope_parameters": rope}, "vision_config": vision}


def _llava_config(tokenizer: Any, grid: list[list[int]]) -> dict[str, Any]:
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=64,
    )
    text = transformers.MistralConfig(
        **_text_config(tokenizer), bos_token_id=tokenizer.bos_token_id, sliding_window=None
    )
    return {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_grid_pinpoints": grid,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def _mm_embed_config(tokenizer: Any) -> dict[str, Any]:
    size = {"hidden_size": 64, "intermediate_size": 128}
    language = {
        **size,
        "vocab_size": tokenizer.convert_tokens_to_ids("<image>"),
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
    }
    pooling = {"num_latents_value": 16, "num_cross_heads": 2, "cross_dim_head": 48}
    return {
        "architectures": ["NVMMEmbedModel"],
        "auto_map": {"AutoModel": "modeling_nvmmembed.NVMMEmbedModel"},
        "model_type": "llava_next",
        "add_eos_token": True,
        "global_image_patch_only": True,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "padding_side": "right",
        "projector_hidden_act": "gelu",
        "retriever": {"text_config": language, "latent_attention_config": pooling},
        "text_config": {"model_type": "mistral", **language, "rope_theta": 1e6},
        "vision_config": {"model_type": "clip_vision_model", **_TOWER, **_PICTURE},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def _save_weights(architecture: Any, config: Any, directory: Path, seed: int) -> None:
    """Save random weights, four times the usual size: near-uniform answers would hide mistakes."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
    model.save_pretrained(directory)


def _rename_vision_tower(weights: Path) -> None:
    """Restore the names of published LLaVA weights, which vLLM 0.32 insists on."""
    from safetensors.torch import load_file, save_file

    old, new = "vision_tower.", "vision_tower.vision_model."
    tensors = {name.replace(old, new): tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


BUILDERS: dict[str, Callable[[Path, int], Path]] = {
    "qwen3-vl": build_tiny_qwen3_vl,
    "llava-next": build_tiny_llava_next,
    "qwen3-vl-reranker": build_tiny_qwen3_vl_reranker,
    "jina-reranker-m0": build_tiny_jina_reranker,
    "mm-embed": build_tiny_mm_embed,
    "clip": build_tiny_clip,
    "siglip": build_tiny_siglip,
    "siglip2": build_tiny_siglip2,
    "sentence-transformer": build_tiny_sentence_transformer,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the model that the command line names."""
    parser = argparse.ArgumentParser(description="Build a tiny model with random weights.")
    parser.add_argument("architecture", choices=sorted(BUILDERS))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    BUILDERS[options.architecture](options.directory, options.seed)


if __name__ == "__main__":
    main()
