"""MM-Embed beside the published code's computation, written out by hand for one input at a time."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

torch = pytest.importorskip("torch", reason="needs torch; run `make setup-models`")
transformers = pytest.importorskip(
    "transformers", reason="needs transformers; run `make setup-models`", exc_type=ImportError
)

from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import normalizers, pre_tokenizers, processors  # noqa: E402
from torch.nn import functional  # noqa: E402

from mmesh.content import Content, Modality, Role  # noqa: E402
from mmesh.errors import FailedPrecondition, InputTooLong, InvalidField  # noqa: E402
from mmesh.models import probes  # noqa: E402
from mmesh.models.encoders import mm_embed  # noqa: E402
from mmesh.models.encoders.families import EncoderChoice, open_encoder  # noqa: E402
from mmesh.models.encoders.mm_embed_network import (  # noqa: E402
    MMEmbedNetwork,
    published_name,
    read_architecture,
)
from mmesh.models.protocol import encode_together  # noqa: E402
from mmesh.testing.tiny_models import build_tiny_mm_embed  # noqa: E402

pytestmark = pytest.mark.models
MAX_TEXT_TOKENS = 128
PUBLISHED_CONFIG = {  # of nvidia/MM-Embed, without what nothing depends on
    "add_eos_token": True,
    "architectures": ["NVMMEmbedModel"],
    "auto_map": {"AutoModel": "modeling_nvmmembed.NVMMEmbedModel"},
    "global_image_patch_only": True,
    "image_token_index": 32000,
    "model_type": "llava_next",
    "padding_side": "right",
    "projector_hidden_act": "gelu",
    "retriever": "nvidia/NV-Embed-v1",
    "text_config": {
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
        "model_type": "mistral",
        "rope_theta": 1000000.0,
        "vocab_size": 32064,
    },
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


class PublishedCode:
    """`NVMMEmbedModel.encode` for one input, in float64, from the tensors by their names."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self.weights = {
            name: tensor.double()
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        self.config = json.loads((folder / "config.json").read_text())
        self.max_length = max_length
        self.tokenizer = card_tokenizer(folder)
        self.view = transformers.LlavaNextImageProcessorPil(
            **json.loads((folder / "preprocessor_config.json").read_text()),
            size={"shortest_edge": 56},
            crop_size={"height": 56, "width": 56},
            image_grid_pinpoints=[[56, 112], [112, 56]],
        )
        vision = transformers.CLIPVisionConfig(**self.config["vision_config"])
        self.tower = transformers.CLIPVisionModel(vision).double().eval()
        start = "vision_tower.vision_model."
        self.tower.load_state_dict(
            {name.removeprefix(start): w for name, w in self.weights.items() if start in name}
        )

    @torch.no_grad()
    def __call__(self, case) -> np.ndarray:
        prompt, instruction_length = self.prompt(case)
        ids = self.tokenizer(prompt, truncation=True, max_length=self.max_length)["input_ids"]
        states = self.embedded(ids, case.content.images)
        states = self.attended_to_latents(self.language_model(states))
        mean = states[instruction_length:].mean(dim=0)
        return functional.normalize(mean, dim=-1).numpy()

    def prompt(self, case) -> tuple[str, int]:
        content = ("<image>\n" if case.content.images else "") + case.content.text
        if case.role is Role.CANDIDATE:
            return content, 0
        if not case.instruction:
            return f"Query: {content}", 0
        instruction = f"Instruct: {case.instruction}"
        return f"{instruction}\nQuery: {content}", len(self.tokenizer(instruction)["input_ids"])

    def embedded(self, ids: list[int], images) -> torch.Tensor:
        rows = []
        for token in ids:
            if token == self.config["image_token_index"]:
                rows.append(self.seen(images[0].data))
            else:
                rows.append(self.weights["language_model.embed_tokens.weight"][[token]])
        return torch.cat(rows)

    def seen(self, data: bytes) -> torch.Tensor:
        picture = Pillow.open(io.BytesIO(data)).convert("RGB")
        tiles = self.view(picture, return_tensors="pt")["pixel_values"]
        patches = self.tower(tiles[:, 0].double(), output_hidden_states=True).hidden_states[-2]
        hidden = functional.gelu(self.linear(patches[0, 1:], "multi_modal_projector.linear_1"))
        rows = self.linear(hidden, "multi_modal_projector.linear_2")
        return torch.cat((rows, self.weights["image_newline"][None]))

    def language_model(self, states: torch.Tensor) -> torch.Tensor:
        config = self.config["retriever"]["text_config"]
        for layer in range(config["num_hidden_layers"]):
            start = f"language_model.layers.{layer}."
            normed = self.rms_norm(states, f"{start}input_layernorm")
            states = states + self.self_attention(normed, f"{start}self_attn.", config)
            normed = self.rms_norm(states, f"{start}post_attention_layernorm")
            gate = functional.silu(self.linear(normed, f"{start}mlp.gate_proj"))
            up = self.linear(normed, f"{start}mlp.up_proj")
            states = states + self.linear(gate * up, f"{start}mlp.down_proj")
        return self.rms_norm(states, "language_model.norm")

    def self_attention(self, states: torch.Tensor, start: str, config) -> torch.Tensor:
        """Every token attends to every other one: no mask at all."""
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        width = config["hidden_size"] // heads
        turns = config["rope_theta"] ** (-torch.arange(0, width, 2).double() / width)
        angles = torch.outer(torch.arange(len(states)).double(), turns)

        def rotated(rows: torch.Tensor) -> torch.Tensor:
            first, second = rows.chunk(2, dim=-1)
            sine, cosine = angles.sin(), angles.cos()
            parts = (first * cosine - second * sine, second * cosine + first * sine)
            return torch.cat(parts, dim=-1)

        outputs = []
        queries, keys, values = (
            self.linear(states, f"{start}{part}_proj").split(width, dim=-1) for part in "qkv"
        )
        for head in range(heads):
            key, value = keys[head * shared // heads], values[head * shared // heads]
            scores = rotated(queries[head]) @ rotated(key).T / math.sqrt(width)
            outputs.append(scores.softmax(dim=-1) @ value)
        return self.linear(torch.cat(outputs, dim=-1), f"{start}o_proj")

    def attended_to_latents(self, states: torch.Tensor) -> torch.Tensor:
        start = "latent_attention_model.cross_attend_blocks."
        pooling = self.config["retriever"]["latent_attention_config"]
        latents = self.layer_norm(
            self.weights["latent_attention_model.latents"], f"{start}0.norm_context"
        )
        keys, values = self.linear(latents, f"{start}0.fn.to_kv").chunk(2, dim=-1)
        queries = self.linear(self.layer_norm(states, f"{start}0.norm"), f"{start}0.fn.to_q")
        by_head = [
            rows.split(pooling["cross_dim_head"], dim=-1) for rows in (queries, keys, values)
        ]
        found = [
            (query @ key.T / math.sqrt(pooling["cross_dim_head"])).softmax(dim=-1) @ value
            for query, key, value in zip(*by_head, strict=True)
        ]
        states = states + self.linear(torch.cat(found, dim=-1), f"{start}0.fn.to_out")
        hidden = self.linear(self.layer_norm(states, f"{start}1.norm"), f"{start}1.fn.net.0")
        passed, gates = hidden.chunk(2, dim=-1)
        return states + self.linear(passed * functional.gelu(gates), f"{start}1.fn.net.2")

    def linear(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(
            rows, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        )

    def layer_norm(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(rows, weight.shape, weight, bias)

    def rms_norm(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        mean = rows.pow(2).mean(dim=-1, keepdim=True)
        epsilon = self.config["retriever"]["text_config"]["rms_norm_eps"]
        return rows * (mean + epsilon).rsqrt() * self.weights[f"{name}.weight"]


def card_tokenizer(folder: Path):
    """Return the tokenizer as the published code sets it: tokenizer.json, BOS and EOS."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build_tiny_mm_embed(tmp_path_factory.mktemp("models") / "mm-embed")


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def load(folder: Path, **choice):
    return mm_embed.load(folder, EncoderChoice(model=str(folder), **choice))


@pytest.fixture(scope="module")
def one_picture(parity_cases) -> list:
    """The parity matrix without what MM-Embed refuses."""
    return [case for case in parity_cases if len(case.content.images) < 2]


def copied(folder: Path, to: Path, **config) -> Path:
    shutil.copytree(folder, to)
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


def encode(model, *contents: Content, role: Role = Role.QUERY, instruction: str = "") -> np.ndarray:
    return encode_together(
        model, [model.prepare(content, role, instruction) for content in contents]
    )


@pytest.mark.parametrize("max_text_tokens", [0, MAX_TEXT_TOKENS])
def test_equals_the_published_code(folder, check_parity, one_picture, max_text_tokens):
    model = load(folder, max_text_tokens=max_text_tokens)
    reference = PublishedCode(folder, max_text_tokens or mm_embed.MAX_TEXT_TOKENS)
    rows = check_parity(model, reference, one_picture)
    assert len(np.unique(rows.round(3), axis=0)) >= len(one_picture) - 4, "the inputs look alike"


def test_a_text_is_cut_where_the_published_code_cuts_it(folder, one_picture):
    model = load(folder, max_text_tokens=MAX_TEXT_TOKENS)
    for case in one_picture:
        prepared = model.prepare(case.content, case.role, case.instruction)
        assert prepared.truncated == ("long text" in case.name)
        assert prepared.cost <= MAX_TEXT_TOKENS + 16  # 16 patches and a line break for one token


def with_metaspace_first(tokenizer) -> None:
    """As newer Llama tokenizers are: only the start of the whole text gets a `\u2581`."""
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first", split=False
    )


@pytest.mark.parametrize("change", [lambda tokenizer: None, with_metaspace_first])
@pytest.mark.parametrize(
    "text",
    [
        "a red square",
        " spaces  inside and around ",
        "\ncat\n\n",
        "Übergröße 你好 🙂",
        "a<image",
        "<",
        "",
    ],
)
def test_tokens_are_those_of_the_whole_prompt(folder, change, text):
    tokenizer = card_tokenizer(folder)
    change(tokenizer)
    image = tokenizer.convert_tokens_to_ids("<image>")
    writer = mm_embed.PromptWriter(tokenizer, image, image_tokens=1, max_tokens=512)
    for lead, role, instruction in (
        ("Instruct: find it.\nQuery: ", Role.QUERY, "find it."),
        ("Query: ", Role.QUERY, ""),
        ("", Role.CANDIDATE, "candidates have none"),
    ):
        for with_image in (False, True):
            prompt = writer.write(text, role, instruction, with_image=with_image)
            whole = lead + "<image>\n" * with_image + text
            assert prompt.ids.tolist() == tokenizer(whole)["input_ids"]


@pytest.mark.parametrize(
    ("role", "instruction", "left_out"),
    [
        (Role.QUERY, "", []),
        (Role.CANDIDATE, "find", []),
        (Role.QUERY, "find", ["<s>", "\u2581Instruct:", "\u2581find", "<0x0A>"]),
    ],
)
def test_the_mean_leaves_out_the_instruction_alone(folder, model, role, instruction, left_out):
    text = "a red square\nQuery: in a text this says nothing"
    prompt = model.prepare(Content.of(text), role, instruction).payload.prompt
    tokens = card_tokenizer(folder).convert_ids_to_tokens(prompt.ids.tolist())
    assert tokens[: prompt.pooled_from] == left_out


def test_special_tokens_in_a_text_are_text(folder, model):
    hostile = "<s> a </s><image>\n<pad> cat"
    image = card_tokenizer(folder).convert_tokens_to_ids("<image>")

    def forged(content: Content, instruction: str) -> list[int]:
        """Return the ids of special tokens, without the first, the last and one picture's 17."""
        prompt = model.prepare(content, Role.QUERY, instruction).payload.prompt
        ids = prompt.ids[1:-1].tolist()
        assert ids.count(image) == 17 * len(content.images)
        return [token for token in ids if token in (1, 2) or token > image]

    assert forged(Content.of(hostile), "") == []
    assert forged(Content.of("cat"), hostile) == []
    assert forged(Content.of(probes.picture(1), hostile), hostile) == []


def test_a_second_picture_is_refused_by_its_place(model):
    content = Content.of(probes.picture(0), "and", probes.picture(1))
    with pytest.raises(InvalidField, match=r"parts\[2\].*one at most"):
        model.prepare(content, Role.QUERY, "")


def test_an_instruction_that_leaves_no_room_is_refused(folder):
    model = load(folder, max_text_tokens=MAX_TEXT_TOKENS)
    with pytest.raises(InputTooLong, match="instruction"):
        model.prepare(Content.of("cat"), Role.QUERY, "find " * MAX_TEXT_TOKENS)


def test_without_a_vision_tower_texts_have_the_same_vectors(folder, model):
    texts = load(folder, modalities=frozenset({Modality.TEXT}))
    assert texts.info.fingerprint == model.info.fingerprint
    assert texts.info.modalities == {Modality.TEXT}
    content = Content.of("a red square")
    np.testing.assert_array_equal(encode(texts, content), encode(model, content))
    with pytest.raises(InvalidField, match="reads texts only"):
        texts.prepare(Content.of(probes.picture(0)), Role.QUERY, "")


def test_bfloat16_keeps_the_angles_of_long_texts(folder, model):
    narrow = load(folder, dtype="bfloat16")
    content = Content.of("a red square on white ground " * 60)
    assert narrow._network.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert (encode(narrow, content) * encode(model, content)).sum() > 0.999
    assert narrow.info.fingerprint != model.info.fingerprint


def test_the_family_is_found_by_the_config_and_runs_no_code_of_the_model(folder):
    model = open_encoder(EncoderChoice(model=str(folder)))
    assert model.info.fingerprint.startswith(mm_embed.FAMILY)
    assert model.info.follows_instructions
    assert set(model.info.calibration) == set(Modality)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"global_image_patch_only": False}, "global_image_patch_only True"),
        ({"add_eos_token": False}, "add_eos_token True"),
        ({"retriever": {"text_config": {}}}, "known retriever"),
        ({"retriever": "nvidia/NV-Embed-v2"}, "known retriever .nvidia/NV-Embed-v1"),
    ],
)
def test_a_model_of_another_make_is_refused(folder, tmp_path, config, message):
    with pytest.raises(FailedPrecondition, match=message):
        load(copied(folder, tmp_path / "other", **config))


@pytest.mark.parametrize("name", ["image_newline", "latent_attention_model.latents"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights, name: weights.pop(name), "lack 1 tensors, as '{name}'"),
        (lambda weights, name: weights.update(lm_head=weights[name] + 1), "no tensor 'lm_head'"),
        (
            lambda weights, name: weights.update({name: weights[name][:-1]}),
            "'{name}' has the shape",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, tmp_path, name, change, message):
    other = copied(folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    change(weights, name)
    save_file(weights, other / "model.safetensors")
    with pytest.raises(FailedPrecondition, match=message.format(name=name)):
        load(other)


@pytest.mark.parametrize("tokens", [8, 5000])
def test_a_length_that_the_model_was_not_made_for_is_refused(folder, tokens):
    with pytest.raises(FailedPrecondition, match="32 to 4096 tokens"):
        load(folder, max_text_tokens=tokens)


def test_the_network_has_the_published_tensors():
    """Beside the hub's listing of nvidia/MM-Embed: weights of 16.4 GB, an index of 69.8 kB."""
    architecture = read_architecture(PUBLISHED_CONFIG)
    with torch.device("meta"):
        parameters = dict(MMEmbedNetwork(architecture).named_parameters())
    size = sum(2 * parameter.numel() for parameter in parameters.values())
    shards = {published_name(name): "model-00001-of-00004.safetensors" for name in parameters}
    index = {"metadata": {"total_size": size}, "weight_map": shards}
    assert f"{size / 1e9:.1f} GB" == "16.4 GB"
    assert f"{len(json.dumps(index, indent=2)) / 1e3:.1f} kB" == "69.8 kB"
    assert architecture.image_tokens == 24 * 24 + 1
    assert architecture.llava.text_config.rope_parameters["rope_theta"] == 10_000
    assert architecture.llava.text_config.sliding_window is None


def test_the_tensors_have_the_names_of_the_published_ones(folder):
    """The names are from public code that places each tensor of nvidia/MM-Embed on a device."""
    names = {
        "image_newline",
        "language_model.embed_tokens.weight",
        "language_model.norm.weight",
        "latent_attention_model.latents",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.embeddings.position_embedding.weight",
    }
    blocks = "latent_attention_model.cross_attend_blocks"
    names |= {f"{blocks}.0.fn.{part}.weight" for part in ("to_q", "to_kv", "to_out")}
    with_bias = [
        *(f"multi_modal_projector.linear_{number}" for number in (1, 2)),
        *(f"vision_tower.vision_model.{part}" for part in ("pre_layrnorm", "post_layernorm")),
        *(f"{blocks}.{part}" for part in ("0.norm", "0.norm_context", "1.norm")),
        *(f"{blocks}.1.fn.net.{number}" for number in (0, 2)),
    ]
    for layer in range(3):
        start = f"language_model.layers.{layer}"
        parts = ["input_layernorm", "post_attention_layernorm"]
        parts += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
        parts += [f"self_attn.{part}_proj" for part in "qkvo"]
        names |= {f"{start}.{part}.weight" for part in parts}
        start = f"vision_tower.vision_model.encoder.layers.{layer}"
        with_bias += [f"{start}.{part}" for part in ("layer_norm1", "layer_norm2")]
        with_bias += [f"{start}.mlp.{part}" for part in ("fc1", "fc2")]
        with_bias += [f"{start}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    names |= {f"{part}.{end}" for part in with_bias for end in ("weight", "bias")}
    assert set(load_file(folder / "model.safetensors")) == names
