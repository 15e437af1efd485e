"""Plan of a local mesh: what its services understand of what they are told."""

from __future__ import annotations

import pytest

from mmesh.local.plan import LocalSettings, plan_services
from services.gateway.config import GatewaySettings
from services.index.config import IndexSettings

NAMES = ("plain", "we ird", "a,b", "[a", "josé", 'a"b', "a'b", "a\\b", "a\nb", "lat\udce9", "#%41")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_data_folder_may_have_any_name(name, tmp_path, monkeypatch):
    data = tmp_path / name
    *_, index, gateway = plan_services(LocalSettings(data))
    for variable, value in {**index.environment, **gateway.environment}.items():
        monkeypatch.setenv(variable, value)
    found = GatewaySettings.from_command_line([*gateway.arguments]).index
    assert found == [f"file:{data / 'index.json'}"]
    assert IndexSettings.from_command_line([*index.arguments]).data_dir == data
