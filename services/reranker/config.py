"""Settings of the reranker service."""

from __future__ import annotations

import os

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mmesh.serving.settings import ServiceSettings


class RerankerSettings(ServiceSettings):
    """What the reranker can be told, by flag or `MMESH_RERANKER_*` variable."""

    model_config = SettingsConfigDict(env_prefix="MMESH_RERANKER_")

    model: str = Field(
        "maxsim", description="Judge: maxsim, or vllm:FOLDER for an instruct MLLM in vLLM."
    )
    template: str = Field(
        "true-false.v1", description="Prompt template of an MLLM: a shipped name, or a TOML file."
    )
    dtype: str = Field("auto", description="Precision of an MLLM; auto takes the checkpoint's.")
    max_model_len: int = Field(
        4096, gt=0, description="Tokens of a prompt with its pictures; longer candidates are cut."
    )
    kv_cache_gib: float = Field(
        1.0, gt=0, description="Memory of an MLLM for prompts and shared prefixes."
    )
    images_per_prompt: int = Field(4, ge=0, description="Pictures of query and candidate together.")
    enforce_eager: bool = Field(
        False, description="Compile nothing in vLLM: starts sooner, runs slower."
    )
    threads: int = Field(
        os.cpu_count() or 1, gt=0, description="Threads of maxsim's model; one a core."
    )
    round_candidates: int = Field(
        8, gt=0, description="Candidates judged between two looks at the deadline."
    )
    max_waiting_calls: int = Field(64, gt=0, description="Calls that may wait before QUEUE_FULL.")
    running_calls: int = Field(4, gt=0, description="Calls judged at a time.")
