"""Tools for manifests and rules, which are an extra: without them the tests say how to get them."""

from pathlib import Path

import pytest

from tools.k8s.check import missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    absent = missing()
    for item in items:
        if absent and HERE in item.path.parents:
            why = f"{absent} missing; `make setup-k8s` installs it"
            item.add_marker(pytest.mark.skip(reason=why))
