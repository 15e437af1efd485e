"""Builds tiny models of real architecture with random weights, so nothing has to be downloaded.

They answer nonsense, but through the same code as the real ones:

    python -m mmesh.models.tiny qwen3-vl DIRECTORY
"""

from __future__ import annotations

import argparse
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
