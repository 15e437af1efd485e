"""The quickstart, followed to the letter, prints what it shows."""

from contextlib import suppress
from pathlib import Path

import pytest

from mmesh.errors import CollectionNotFound

PAGE = Path(__file__).parents[2] / "docs/quickstart.md"


@pytest.fixture
def demo_pictures(monkeypatch) -> None:
    """The pictures that `make demo` has fetched before a reader comes to the page."""
    from examples.demo.pictures import fetch_pictures

    monkeypatch.delenv("MMESH_CACHE", raising=False)
    try:
        fetch_pictures()
    except SystemExit as problem:
        pytest.skip(f"the demo's pictures are absent: {problem}")


def test_every_step_works_and_prints_what_the_page_shows(demo_pictures, follow, client):
    try:
        follow(PAGE)
    finally:
        with suppress(CollectionNotFound):
            client.delete_collection("things")
