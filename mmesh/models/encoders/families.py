"""Encoder families by name: the one place that knows which there are."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmesh.content import Modality
from mmesh.errors import FailedPrecondition
from mmesh.models.protocol import EncoderModel

LITE = "lite"
FAMILIES = ("mm-embed", "qwen3-vl-embedding", "clip-fusion", "sentence-transformers")
"""Each is a module of `mmesh.models` with `FAMILY`, `REVISION` and `load(folder, choice)`."""
PUBLISHED_PREPROCESSING = ("mm-embed",)
"""Families whose published code makes other pixels of some pictures than ours, on request."""
OPEN_FAMILY = "sentence-transformers"
"""Takes all models of no other family; the model chooses the classes that run it."""
_BY_MODEL_TYPE = {
    "qwen3_vl": "qwen3-vl-embedding",
    "clip": "clip-fusion",
    "siglip": "clip-fusion",
    "siglip2": "clip-fusion",
    "mmesh-lite": LITE,
}


@dataclass(frozen=True, slots=True)
class EncoderChoice:
    """Which encoder to open, and how."""

    model: str = LITE
    """`lite`, a folder, or `hf:ORG/NAME[@REVISION]`."""
    family: str = "auto"
    """One of `FAMILIES`; `auto` goes by the model's config.json."""
    backend: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """What runs lite."""
    threads: int = 1
    """Threads of one forward pass on a CPU."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 elsewhere."""
    dim: int = 0
    """Length of the vectors, of models trained for several; 0 for the whole length."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    max_text_tokens: int = 0
    """Texts are cut to this many tokens; 0 for the model's own limit."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile rewrites the network's layers; `auto`: on a GPU, where it pays."""
    published_preprocessing: bool = False
    """Make pixels of pictures exactly as the model's published code does; MM-Embed only."""
    modalities: frozenset[Modality] | None = None
    """What is answered; None for all that the model reads."""


def open_encoder(choice: EncoderChoice) -> EncoderModel:
    """Return the encoder that `choice` names, calibrated by the built-in reference pool.

    Raises:
        FailedPrecondition: there is no such model, family or device, a part of it is not
            installed, or it cannot do what is asked.
    """
    model = _restricted(_loaded(choice), choice.modalities)
    if model.info.passes > 1:
        from mmesh.models.probes import warm_up

        warm_up(model)
    if not model.info.calibration:
        from mmesh.models.reference import calibrated

        model = calibrated(model)
    if choice.dim in (0, model.info.dim):
        return model
    from mmesh.models.encoders.matryoshka import Truncated

    return Truncated(model, choice.dim)


def _loaded(choice: EncoderChoice) -> EncoderModel:
    if choice.model == LITE:
        _check_preprocessing(choice, LITE)
        from mmesh.models.encoders.lite.model import load_lite

        return load_lite(backend=choice.backend, threads=choice.threads)
    from mmesh.models import hub

    folder = hub.local_folder(choice.model, with_code=choice.trust_remote_code)
    name = family_of(hub.read_config(folder)) if choice.family == "auto" else choice.family
    if name == LITE:
        from mmesh.models.encoders.lite.model import load_lite

        _check_preprocessing(choice, LITE)
        return load_lite(backend=choice.backend, threads=choice.threads, directory=folder)
    if name not in FAMILIES:
        raise FailedPrecondition(f"no family is called {name!r}; known: {', '.join(FAMILIES)}")
    _check_preprocessing(choice, name)
    if name == OPEN_FAMILY and not choice.trust_remote_code:
        hub.check_no_code(folder)
    return load_family(name, folder, choice)


def _check_preprocessing(choice: EncoderChoice, family: str) -> None:
    if choice.published_preprocessing and family not in PUBLISHED_PREPROCESSING:
        has = ", ".join(PUBLISHED_PREPROCESSING)
        raise FailedPrecondition(f"{family} has no published preprocessing to choose; {has} has")


def family_of(config: dict[str, Any]) -> str:
    """Return the name of the family for a model's config.json."""
    if "NVMMEmbedModel" in config.get("architectures", ()):
        return "mm-embed"
    return _BY_MODEL_TYPE.get(config.get("model_type", ""), OPEN_FAMILY)


def load_family(name: str, folder: Path, choice: EncoderChoice) -> EncoderModel:
    """Return the model of a family on torch in a folder, as it is.

    Raises:
        FailedPrecondition: as `open_encoder`.
    """
    try:
        _quiet_transformers()
        family = importlib.import_module(f"mmesh.models.encoders.{name.replace('-', '_')}")
        model: EncoderModel = family.load(folder, choice)
    except ImportError as error:
        reason = f"the family {name} cannot be imported ({error}); run `make setup-models`"
        raise FailedPrecondition(reason) from error
    except (OSError, ValueError) as error:  # how transformers refuses files
        raise FailedPrecondition(f"{folder} is no model of {name}: {error}") from error
    return model


def _quiet_transformers() -> None:
    """Keep progress bars and load reports out of a service's log; what matters is raised."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _restricted(model: EncoderModel, modalities: frozenset[Modality] | None) -> EncoderModel:
    if modalities is None or model.info.modalities <= modalities:
        return model
    from mmesh.models.wrapped import Wrapped

    answered = model.info.modalities & modalities
    if not answered:
        raise FailedPrecondition(f"{model.info.name} reads none of what is to be answered")
    return Wrapped(model, replace(model.info, modalities=answered))
