"""The committed JSON of the dashboards."""

from __future__ import annotations

from pathlib import Path

from tools.dashboards.boards import ALL

FOLDER = Path(__file__).parents[2] / "k8s" / "components" / "monitoring" / "dashboards"


def write() -> None:
    """Write the files, and remove those of dashboards that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, text in _files().items():
        (FOLDER / name).write_text(text)


def stale() -> list[str]:
    """Return the names of files that are not what the code says."""
    new = _files()
    old = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    return sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))


def _files() -> dict[str, str]:
    from tools.dashboards.grafana import encode  # needs Grafana's SDK, an extra

    return {f"{board.name}.json": encode(board, ALL) for board in ALL}
