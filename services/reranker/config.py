"""Settings of the reranker service."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from mmesh.serving.settings import ServiceSettings


class RerankerSettings(ServiceSettings):
    """What the reranker can be told, by flag or `MMESH_RERANKER_*` variable."""

    model_config = SettingsConfigDict(env_prefix="MMESH_RERANKER_")

    model: str = Field(
        "maxsim",
        description="Judge: maxsim; vllm:FOLDER or vllm:hf:ORG/NAME[@REVISION] for an MLLM in "
        "vLLM; vllm+http://HOST:PORT for a vLLM server.",
    )
    family: str = Field("auto", description="Family of an MLLM; auto tells it by its files.")
    route: str = Field(
        "auto", description="How an MLLM scores: logprob, classifier, or auto by its family."
    )
    template: str = Field(
        "auto",
        description="Prompt template of an MLLM that is no reranker: a shipped name, a TOML file, "
        "or a folder of them; auto is mbeir.v1.",
    )
    tokenizer: str = Field(
        "",
        description="Folder or hf:ORG/NAME[@REVISION] with the tokenizer of a vLLM server's model.",
    )
    api_key: SecretStr = Field(SecretStr(""), description="For a vLLM server that wants one.")
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
    token_cache_mib: int = Field(
        256, ge=0, description="Memory of maxsim for token vectors of what it judged before."
    )
    round_candidates: int = Field(
        8, gt=0, description="Candidates of the first round; while time allows, rounds double."
    )
    score_cache: int = Field(65_536, ge=0, description="Scores that are remembered; some 20 MB.")
    canary: Path | None = Field(
        None,
        description="Stored scores of the built-in probes (`mmesh rerank check --save`), which the "
        "judge must give before the service is ready.",
    )
    canary_cache: Path | None = Field(
        None,
        description="Folder for notes on maxsim having passed its canary: it is left out while "
        "model, libraries and processor are the same; empty: it always runs.",
    )
    parity_tolerance: float = Field(
        0.0,
        ge=0,
        description="Largest difference between a probe's scores alone, in a batch, in another "
        "order and stored; 0: 0.001, or 0.02 for an MLLM in another precision than float32.",
    )
    max_waiting_calls: int = Field(64, gt=0, description="Calls that may wait before QUEUE_FULL.")
    running_calls: int = Field(4, gt=0, description="Calls judged at a time.")

    @property
    def tolerance(self) -> float:
        """The largest difference that parity allows."""
        is_exact = self.model == "maxsim" or self.dtype == "float32"
        return self.parity_tolerance or (1e-3 if is_exact else 2e-2)
