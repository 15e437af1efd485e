"""Published figures to stand beside one's own, each with the pool that it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmesh.evaluation.datasets.mbeir import TASK_NAMES


@dataclass(frozen=True, slots=True)
class Published:
    """A row of somebody's table, in percent."""

    model: str
    way: str
    pool: str
    source: str
    tasks: Mapping[str, float]
    average: float | None

    @property
    def title(self) -> str:
        """Return the head of its column."""
        return f"{self.model} ({self.pool})"


def _tasks(*values: float) -> dict[str, float]:
    return dict(zip(TASK_NAMES, values, strict=True))


_GLOBAL, _LOCAL = "global pool, 5.6 M", "local pools"
_PYSERINI = "castorini/pyserini, m_beir.yaml, success@5 and @10 (a re-run of the released weights)"
MBEIR = (
    Published(
        "MM-Embed", "union", _GLOBAL,
        "arXiv 2411.02571, by way of the tables of U-MARVEL, ELVA and V-Retrver",
        _tasks(41.0, 71.3, 17.1, 95.9, 68.8, 85.0, 41.3, 90.1, 18.4, 32.4, 42.1, 42.3, 25.7, 50.0,
               64.1, 57.7),
        52.7,
    ),
    Published(
        "CLIP_SF-L", "union", _GLOBAL, _PYSERINI,
        _tasks(42.55, 71.73, 17.86, 83.42, 52.58, 77.54, 38.72, 91.60, 18.04, 31.65, 39.59, 22.18,
               24.25, 43.79, 60.16, 44.35),
        47.5,
    ),
    Published(
        "CLIP_SF-L", "local", _LOCAL, _PYSERINI,
        _tasks(42.86, 80.84, 17.98, 83.87, 53.29, 78.41, 42.61, 92.06, 18.06, 31.70, 45.99, 27.25,
               24.54, 45.28, 68.84, 49.06),
        50.2,
    ),
    Published(
        "U-MARVEL-7B", "union", _GLOBAL, "arXiv 2507.14902 (the average only)", {}, 60.7,
    ),
    Published(
        "U-MARVEL-7B", "local", _LOCAL, "arXiv 2507.14902 (the average only)", {}, 63.2,
    ),
)  # fmt: skip
_CIRCO_POOL = "CIRCO test, COCO unlabelled"
CIRCO = tuple(
    Published(model, "local", _CIRCO_POOL, source, {"circo-test": value, "circo-val": value}, None)
    for model, value, source in (
        ("MM-Embed", 32.3, "arXiv 2411.02571, without reranking"),
        ("MM-Embed + rerank 10", 39.9, "arXiv 2411.02571"),
        ("U-MARVEL-7B", 36.2, "arXiv 2507.14902"),
    )
)


def published_for(dataset: str) -> tuple[Published, ...]:
    """Return what is published for a data set."""
    if dataset == "mbeir-test":
        return MBEIR
    return CIRCO if dataset.startswith("circo") else ()
