"""Settings of a service: by flag, else by `MMESH_<SERVICE>_*` variable, else by default."""

from __future__ import annotations

import logging
from typing import Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError


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
    max_connection_age_s: float = Field(
        0.0,
        ge=0,
        description="Seconds after which callers are asked to connect anew, about: so they find "
        "what an autoscaler has added. Running calls go on; 0: never.",
    )
    max_message_bytes: int = Field(
        64 << 20, gt=0, description="Bytes of one message; larger ones are RESOURCE_EXHAUSTED."
    )
    stop_with_parent: bool = Field(
        False, description="Drain when the process that started this one is gone."
    )
    start_token: str = Field(
        "",
        description="Under SERVICE@TOKEN health answers, too: who gave the token to this process "
        "alone learns that it is this one that answers, and not another at its address.",
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

    @property
    def bare_host(self) -> str:
        """The host as HTTP servers and sockets want it: an IPv6 address without brackets."""
        return self.host.removeprefix("[").removesuffix("]")

    def address_of(self, port: int) -> str:
        """Return a port of the host as gRPC wants it: an IPv6 address in brackets."""
        host = self.bare_host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        host.encode("idna")  # raises a UnicodeError, which is a ValueError
        return host

    @field_validator("log_level")
    @classmethod
    def _check_log_level(cls, level: str) -> str:
        if level.upper() not in logging.getLevelNamesMapping():
            raise ValueError("use DEBUG, INFO, WARNING or ERROR")
        return level

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Self:
        """Read flags, then the environment; prints help and exits where asked.

        Raises:
            SystemExit: a setting is wrong; says which, never its value, which may be secret.
        """
        try:
            return cls(_cli_parse_args=arguments if arguments is not None else True)  # type: ignore[call-arg]  # pydantic-settings' own argument
        except ValidationError as error:
            problems = [cls._words_of(problem) for problem in error.errors(include_input=False)]
        except SettingsError as error:
            problems = [f"{error}: {error.__cause__}"]
        raise SystemExit("\n".join(problems))

    @classmethod
    def _words_of(cls, problem: ErrorDetails) -> str:
        name, *place = map(str, problem["loc"] or ("settings",))
        flag, variable = name.replace("_", "-"), f"{cls.model_config['env_prefix']}{name}".upper()
        return f"--{flag} or {variable}: {' '.join([*place, problem['msg']])}"
