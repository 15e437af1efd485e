"""Settings of the encoder service."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mmesh.serving.settings import ServiceSettings


class EncoderSettings(ServiceSettings):
    """What the encoder can be told, by flag or `MMESH_ENCODER_*` variable."""

    model_config = SettingsConfigDict(env_prefix="MMESH_ENCODER_")

    model: str = Field("lite", description="Model family; `lite` is the embedded default.")
    backend: Literal["onnxruntime", "openvino"] = Field(
        "onnxruntime", description="What runs lite: onnxruntime, or openvino (extra `openvino`)."
    )
    threads: int = Field(
        os.cpu_count() or 1, gt=0, description="Threads of one forward pass; one a core."
    )
    prepare_threads: int = Field(2, gt=0, description="Threads that decode, resize and tokenise.")
    max_batch_items: int = Field(64, gt=0, description="Inputs in one forward pass.")
    max_batch_cost: int = Field(
        1024, gt=0, description="Text tokens in one forward pass, padding included; about 0.2 s."
    )
    max_waiting_cost: int = Field(
        65_536, gt=0, description="Text tokens that may wait before QUEUE_FULL; some ten seconds."
    )
