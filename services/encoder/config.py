"""Settings of the encoder service."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mmesh.content import Modality
from mmesh.errors import FailedPrecondition
from mmesh.models.encoders.families import EncoderChoice
from mmesh.serving.settings import ServiceSettings

AUTO: Literal["auto"] = "auto"
Measured = Annotated[int, Field(gt=0)] | Literal["auto"]
"""A number, or `auto` for one that suits the device."""


class EncoderSettings(ServiceSettings):
    """What the encoder can be told, by flag or `MMESH_ENCODER_*` variable."""

    model_config = SettingsConfigDict(env_prefix="MMESH_ENCODER_")

    model: str = Field(
        "lite",
        description="The embedded default `lite`, a folder, or hf:ORG/NAME[@REVISION].",
    )
    family: str = Field("auto", description="Model family; auto tells it by its config.json.")
    backend: Literal["onnxruntime", "openvino"] = Field(
        "onnxruntime", description="What runs lite: onnxruntime, or openvino (extra `openvino`)."
    )
    device: str = Field(
        "cpu",
        description="cpu, cuda, or several such as cuda:0,cuda:1, each with its own copy. Where "
        "bulk work matters most, cpu,cpu with one thread is faster than cpu with two.",
    )
    dtype: str = Field(
        "auto", description="float32, bfloat16 or float16; auto: float32 on a CPU, else bfloat16."
    )
    dim: int = Field(
        0, ge=0, description="Length of the vectors, for models trained for several; 0: all of it."
    )
    max_text_tokens: int = Field(
        0, ge=0, description="Tokens of a text that are read; 0: as many as the model can."
    )
    modalities: str = Field(
        "", description="What is answered, such as text or text,image; empty: all that it reads."
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Let torch.compile rewrite the network; auto: on a GPU with a C compiler, for "
        "models that pack their inputs.",
    )
    published_preprocessing: bool = Field(
        False,
        description="Make pixels exactly as the published code of MM-Embed does: not turned by "
        "EXIF, transparency dropped.",
    )
    threads: int = Field(
        os.cpu_count() or 1, gt=0, description="Threads of one forward pass; one a core."
    )
    prepare_threads: Measured = Field(
        AUTO,
        description="Threads that prepare queries with pictures, and as many for bulk work; auto: "
        "2, for GPUs half the cores. Texts have two at most.",
    )
    max_batch_items: Measured = Field(
        AUTO, description="Inputs in one forward pass; auto: 64, on a GPU as many as it is fast by."
    )
    max_batch_cost: Measured = Field(
        AUTO,
        description="Text tokens in one forward pass, padding included; auto: 1024, about 0.1 s, "
        "on a GPU the fewest that it is fast by, measured at the start.",
    )
    pass_cost: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        AUTO,
        description="Text tokens that take as long as a forward pass of nothing: so much padding "
        "is put up with to save one; auto: 24, measured on a GPU.",
    )
    max_input_cost: int = Field(
        8192,
        gt=0,
        description="Text tokens that one input may cost, its pictures included; more is "
        "INPUT_TOO_LONG. Longer text is cut at max-text-tokens, so keep that below.",
    )
    max_waiting_cost: Measured = Field(
        AUTO,
        description="Text tokens that may wait before QUEUE_FULL; auto: 65,536, on a GPU those of "
        "ten seconds.",
    )
    canary: Path | None = Field(
        None,
        description="Stored vectors of the built-in probes (`mmesh encode check --save`), which "
        "the model must give before the service is ready.",
    )
    canary_cache: Path | None = Field(
        None,
        description="Folder for notes on models that passed their canary: it is left out while "
        "model, libraries and processor are the same; empty: it always runs.",
    )
    parity_tolerance: float = Field(
        0.0,
        ge=0,
        description="Largest difference between a probe's vectors alone, in a batch, in another "
        "order and stored; 0: 1e-4 in float32, 0.02 in half precision.",
    )

    @property
    def choices(self) -> list[EncoderChoice]:
        """The encoder to open on each device."""
        shared = {one.name: getattr(self, one.name) for one in fields(EncoderChoice)}
        shared["modalities"] = _modalities(self.modalities)
        return [EncoderChoice(**shared | {"device": one}) for one in _listed(self.device)]

    @property
    def serves_on_gpu(self) -> bool:
        """Whether the device is a GPU, or several."""
        return self.device.startswith("cuda")

    @property
    def prepare_thread_count(self) -> int:
        """Threads of each priority."""
        if self.prepare_threads != AUTO:
            return self.prepare_threads
        return max(2, (os.cpu_count() or 1) // 2) if self.serves_on_gpu else 2

    @property
    def batch_settings(self) -> tuple[int | Literal["auto"], ...]:
        """Items, cost, cost of a pass and waiting cost, as they were set."""
        return self.max_batch_items, self.max_batch_cost, self.pass_cost, self.max_waiting_cost

    @property
    def tolerance(self) -> float:
        """The largest difference that parity allows."""
        is_on_cpu = all(one == "cpu" for one in _listed(self.device))
        is_exact = self.dtype == "float32" or (self.dtype == "auto" and is_on_cpu)
        return self.parity_tolerance or (1e-4 if is_exact else 2e-2)


def _modalities(listed: str) -> frozenset[Modality] | None:
    try:
        return frozenset(map(Modality, _listed(listed))) or None
    except ValueError:
        known = ", ".join(modality.value for modality in Modality)
        raise FailedPrecondition(f"no modality list: {listed!r}; known: {known}") from None


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]
