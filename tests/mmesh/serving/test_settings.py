"""Settings that are wrong are named in one line, without their values."""

from __future__ import annotations

import pytest

from services.gateway.config import GatewaySettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOG_LEVEL", "verbose"),
        ("PORT", "tcp://10.0.0.1:50550"),  # what Kubernetes sets for a Service of that name
        ("INDEX", "not json"),
        ("DRAIN_S", "-1"),
        ("HOST", "two..dots"),
        ("ENCODER", "[]"),
    ],
)
def test_a_wrong_variable_is_named(name, value, monkeypatch):
    monkeypatch.setenv(f"MMESH_GATEWAY_{name}", value)
    with pytest.raises(SystemExit) as refusal:
        GatewaySettings.from_command_line([])
    said = str(refusal.value)
    assert name.lower() in said.lower()
    assert value not in said
    assert len(said.splitlines()) == 1


def test_a_wrong_flag_is_named():
    with pytest.raises(SystemExit, match="--metrics-port or MMESH_GATEWAY_METRICS_PORT: Input"):
        GatewaySettings.from_command_line(["--metrics-port", "99999"])


def test_a_log_level_may_be_in_small_letters():
    assert GatewaySettings.from_command_line(["--log-level", "debug"]).log_level == "debug"
