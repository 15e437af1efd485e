"""Which judge is wanted."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class JudgeChoice:
    """Which judge to open, and how."""

    model: str = "maxsim"
    """`maxsim`, `vllm:FOLDER`, `vllm:hf:ORG/NAME[@REVISION]`, or `vllm+http://HOST:PORT`."""
    family: str = "auto"
    """One of `FAMILIES`; `auto` tells it from the model's files and name."""
    route: str = "auto"
    """`classifier` or `logprob`; the family's own unless it has both."""
    template: str = "auto"
    """Of a zero-shot judge: a shipped name, a TOML file or a folder; `auto` is `mbeir.v1`."""
    tokenizer: str = ""
    """Of a server's model: a folder, or `hf:ORG/NAME[@REVISION]`."""
    api_key: str = field(default="", repr=False)
    """For a remote server that wants one."""
    dtype: str = "auto"
    max_model_len: int = 4096
    kv_cache_gib: float = 1.0
    images_per_prompt: int = 4
    enforce_eager: bool = False
    threads: int = os.cpu_count() or 1
    """Of maxsim's model."""
    token_cache_mib: int = 256
    """Of token vectors that maxsim remembers."""
