"""Settings of a service: by flag, else by `MMESH_<SERVICE>_*` variable, else by default."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What every service can be told; `python -m services.NAME --help` prints all of it."""

    model_config = SettingsConfigDict(
        frozen=True, cli_kebab_case=True, cli_implicit_flags=True, cli_hide_none_type=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a cluster.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int = Field(
        -1, ge=-1, le=65535, description="Port of /metrics; 0 takes a free one, -1 serves none."
    )
    drain_s: float = Field(
        0.5,
        ge=0,
        description="Seconds between NOT_SERVING and no more accepting: balancers notice.",
    )
    grace_s: float = Field(
        20.0,
        ge=0,
        description="Seconds for running calls after that; below the pod's grace period.",
    )
    max_message_bytes: int = Field(
        64 << 20, gt=0, description="Bytes of one message; larger ones are RESOURCE_EXHAUSTED."
    )
    stop_with_parent: bool = Field(
        False, description="Drain when the process that started this one is gone."
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    loop_limit_ms: float = Field(
        0.0,
        ge=0,
        description="Debugging: log what computes on the event loop for longer than this; 0: off.",
    )
    otlp_endpoint: str = Field(
        "",
        description="Where traces go (OTLP over gRPC), such as http://collector:4317; empty: none.",
    )
    otlp_headers: SecretStr = Field(
        SecretStr(""), description="Headers for the trace endpoint, as key=value,key=value."
    )

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Self:
        """Read flags, then the environment; prints help and exits where asked, or where wrong."""
        return cls(_cli_parse_args=arguments if arguments is not None else True)  # type: ignore[call-arg]  # pydantic-settings' own argument
