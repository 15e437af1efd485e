"""`lite` in training computes what its folder serves, and changes nothing but what should train.

Costs 12 s, half of it the opening of the model, three times, and half an interpreter with torch.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytest.importorskip("transformers", reason="transformers is absent: run `make setup-training`")

from safetensors.torch import load_file  # noqa: E402

from mmesh.content import Content, Role  # noqa: E402
from mmesh.models import probes  # noqa: E402
from mmesh.models.encoders.families import EncoderChoice, open_encoder  # noqa: E402
from mmesh.models.encoders.lite import artefacts, load_lite  # noqa: E402
from mmesh.models.encoders.lite.model import Reading  # noqa: E402
from mmesh.models.protocol import EncoderModel, encode_together  # noqa: E402
from mmesh.training.learners.learner import Adapting  # noqa: E402
from mmesh.training.learners.lite import LiteLearner, LiteModel, write_base  # noqa: E402

pytestmark = [pytest.mark.training, pytest.mark.models]
CONTENTS = [
    Content.of("sleeping pets"),
    Content.of("a longer text about the harbour " * 9),
    *probes.pictures()[:2],
    *probes.illustrated_texts()[:2],
]
ASKED = "Find a picture."


def vectors(model: EncoderModel, role: Role, instruction: str) -> np.ndarray:
    prepared = [model.prepare(content, role, instruction) for content in CONTENTS]
    return np.concatenate([encode_together(model, [one]) for one in prepared])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lite") / "base"
    write_base(folder, Reading(before_text=True, picture_share=0.3))
    return folder


@pytest.fixture(scope="module")
def trained(base) -> tuple[LiteLearner, Path]:
    """A learner after three steps, and the folder that it saved."""
    learner = LiteLearner(base, Adapting(4, 32), threads=1)
    chosen = [one for one in learner.network.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(chosen, lr=3e-3)
    inputs = [learner.prepare(content, Role.QUERY, ASKED) for content in CONTENTS]
    for _ in range(3):
        optimiser.zero_grad()
        rows = learner.embed(inputs)
        (rows @ rows.T).mean().backward()
        optimiser.step()
    folder = base.with_name("trained")
    learner.save(folder)
    return learner, folder


@pytest.mark.parametrize("role", Role)
def test_the_folder_serves_what_the_trainer_computes(trained, role) -> None:
    learner, folder = trained
    served = open_encoder(EncoderChoice(str(folder)))
    theirs = vectors(served, role, ASKED)
    inputs = [learner.prepare(content, role, ASKED) for content in CONTENTS]
    with torch.no_grad():
        mine = learner.embed(inputs).numpy()
    assert np.abs(mine - theirs).max() < 1e-5
    assert np.abs(vectors(LiteModel(folder, 1), role, ASKED) - theirs).max() < 1e-5
    assert served.info.name == "trained"
    assert served.info.follows_instructions
    assert set(served.info.calibration) == served.info.modalities


def test_only_adapted_layers_and_the_head_change(trained, base) -> None:
    _, folder = trained
    names = (artefacts.TEXT_GRAPH, artefacts.IMAGE_GRAPH, artefacts.TOKENIZER, artefacts.CLASSES)
    assert all((folder / name).read_bytes() == (base / name).read_bytes() for name in names)
    before, after = (load_file(one / artefacts.TEXT_WEIGHTS) for one in (base, folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 6 * 6
    assert all(
        name.endswith((".query.weight", ".key.weight", ".value.weight", ".dense.weight"))
        for name in changed
    )
    assert (folder / artefacts.HEAD).read_bytes() != (base / artefacts.HEAD).read_bytes()


def test_an_untrained_folder_without_instructions_is_the_shipped_model(tmp_path) -> None:
    write_base(tmp_path / "same", Reading())
    same = open_encoder(EncoderChoice(str(tmp_path / "same")))
    shipped = load_lite()
    for role in Role:
        assert np.abs(vectors(same, role, ASKED) - vectors(shipped, role, ASKED)).max() < 1e-6
    assert not same.info.follows_instructions


def test_an_instruction_changes_queries_only(trained) -> None:
    model = open_encoder(EncoderChoice(str(trained[1])))
    other = "Find a description."
    gap = np.abs(vectors(model, Role.QUERY, ASKED) - vectors(model, Role.QUERY, other)).max(axis=1)
    assert (gap > 1e-4).all()
    same = vectors(model, Role.CANDIDATE, ASKED) - vectors(model, Role.CANDIDATE, other)
    assert np.abs(same).max() == 0


def test_a_damaged_folder_is_refused(trained, tmp_path) -> None:
    import shutil

    from mmesh.errors import DataLoss

    copy = shutil.copytree(trained[1], tmp_path / "copy")
    weights = copy / artefacts.TEXT_WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataLoss, match=r"model.safetensors"):
        open_encoder(EncoderChoice(str(copy)))


def test_a_process_that_has_imported_nothing_else_can_train_it(base):
    # Where torch is a CPU build and torchvision is not, transformers needs a declaration first.
    code = (
        "from pathlib import Path; import sys\n"
        "from mmesh.training.learners.lite import LiteLearner\n"
        "from mmesh.training.learners.learner import Adapting\n"
        "LiteLearner(Path(sys.argv[1]), Adapting(4, 32), threads=1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
