"""Tiny models of each family on torch train for 20 steps; the saved folder serves the result.

Costs 2 s a family, most of it the opening of the model, twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytest.importorskip("transformers", reason="transformers is absent: run `make setup-training`")

from mmesh.content import Content, Modality, Role  # noqa: E402
from mmesh.models.encoders.families import EncoderChoice, open_encoder  # noqa: E402
from mmesh.models.protocol import encode_together  # noqa: E402
from mmesh.testing import tiny_models  # noqa: E402
from mmesh.training.learners.checkpointing import checkpoint_layers  # noqa: E402
from mmesh.training.learners.learner import Adapting  # noqa: E402
from mmesh.training.learners.towers import open_learner, write_base  # noqa: E402
from mmesh.training.loop import Pace, Training, read_losses  # noqa: E402
from mmesh.training.sampling import Sampler  # noqa: E402
from mmesh.training.sources import Source, load  # noqa: E402

pytestmark = [pytest.mark.training, pytest.mark.models]
COLOURS = {
    "red": (200, 30, 30),
    "green": (40, 170, 60),
    "blue": (40, 60, 200),
    "grey": (90, 90, 90),
}
BUILDERS = {
    "sentence-transformers": tiny_models.build_tiny_sentence_transformer,
    "clip-fusion": tiny_models.build_tiny_clip,
    "siglip": tiny_models.build_tiny_siglip,
    "qwen3-vl-embedding": tiny_models.build_tiny_qwen3_vl,
    "mm-embed": tiny_models.build_tiny_mm_embed,
}
FROZEN = {
    "sentence-transformers": r"",
    "clip-fusion": r"embedding",
    "siglip": r"embedding",
    "qwen3-vl-embedding": r"visual",
    "mm-embed": r"vision_tower|latent|embed_tokens",
}
"""What must not change, among else."""


@pytest.fixture
def pairs(tmp_path, pictures) -> Path:
    """Texts to pictures, and texts to texts for models that read no pictures."""
    from PIL import Image as Pillow

    rows = []
    for number in range(32):
        name, colour = list(COLOURS.items())[number % 4]
        shade = tuple(max(0, one - number) for one in colour)
        picture = tmp_path / f"{number}.png"
        picture.write_bytes(pictures.encode(Pillow.new("RGB", (48, 48), shade), "PNG"))
        words = f"{name} {number}"
        positive = {"text": f"{words} at dawn", "image": picture.name, "id": f"c{number}"}
        rows.append({"query": f"what is {words}", "instruction": "Find it.", "positive": positive})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tensors(folder: Path) -> dict[str, str]:
    """The SHA-256 of each tensor in a folder."""
    from safetensors.torch import load_file

    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            data = tensor.contiguous().view(torch.uint8).numpy() if tensor.ndim else b""
            found[name] = hashlib.sha256(bytes(data)).hexdigest()
    return found


@pytest.mark.parametrize("family", BUILDERS)
def test_a_tiny_model_learns_and_its_folder_serves_what_it_learned(family, pairs, tmp_path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    write_base(base, BUILDERS[family](tmp_path / "tiny"), reads_instructions=True)
    learner = open_learner(base, Adapting(8, 64), EncoderChoice(str(base), compile="off"))
    examples = load(Source(pairs)).examples
    if family == "sentence-transformers":  # it reads texts only
        for one in examples:
            object.__setattr__(one.positives[0], "image", None)
    sampler = Sampler({"a": examples}, {"a": 1}, 16, 0, seed=1)
    pace = Pace(20, 3e-3, chunk=5, checkpoint_every=100)
    Training(learner, sampler, pace, tmp_path / "work", "d").run()
    losses = [step["loss"] for step in read_losses(tmp_path / "work")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    _check_checkpointing(learner, examples[:4])
    learner.save(out)
    before, after = tensors(base), tensors(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert not [name for name in changed if FROZEN[family] and re.search(FROZEN[family], name)]
    assert all("norm" not in name and "bias" not in name for name in changed - _projector(changed))
    _check_parity(learner, out, family)


def _projector(changed: set[str]) -> set[str]:
    return {name for name in changed if "multi_modal_projector" in name}


def _check_checkpointing(learner, examples) -> None:
    """Layers that are computed again give the same gradients, and keep less meanwhile."""
    contents = [item.content() for one in examples for item in (one.query, *one.positives)]
    inputs = [learner.prepare(content, Role.CANDIDATE, "") for content in contents]
    learner.network.train()
    kept, gradients = zip(*(_pass(learner, inputs, again) for again in (False, True)), strict=True)
    learner.network.eval()
    assert kept[1] < 0.7 * kept[0]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def _pass(learner, inputs, again: bool) -> tuple[int, dict]:
    """The bytes that a pass forth keeps for the way back, and the gradients."""
    if again:
        checkpoint_layers(learner.network)
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    learner.network.zero_grad()
    torch.manual_seed(0)  # some drop out
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vectors = learner.embed(inputs)
    weights = {one.data_ptr() for one in learner.network.parameters()}
    held = sum(size for place, size in kept.items() if place not in weights)
    (vectors * torch.arange(vectors.shape[1])).sum().backward()
    named = learner.network.named_parameters()
    return held, {name: one.grad.clone() for name, one in named if one.grad is not None}


def _check_parity(learner, out: Path, family: str) -> None:
    served = open_encoder(EncoderChoice(str(out), compile="off"))
    contents = [Content.of("what is red 3"), Content.of("a longer text about a blue harbour")]
    if Modality.IMAGE in served.info.modalities:
        from mmesh.models import probes

        contents += [probes.pictures()[1], probes.illustrated_texts()[2]]
    for content in contents:
        for role in Role:
            instruction = "Find it." if role is Role.QUERY else ""
            with torch.no_grad():
                mine = learner.embed([learner.prepare(content, role, instruction)]).numpy()
            theirs = encode_together(served, [served.prepare(content, role, instruction)])
            assert np.abs(mine - theirs).max() < 1e-4
    assert served.info.follows_instructions or family == "sentence-transformers"
