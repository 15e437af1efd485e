"""The model card of what was trained: base, data with hashes, steps, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from mmesh.training.recipe import Recipe
from mmesh.training.sources import Loaded

CARD = "MODEL_CARD.md"


def card(recipe: Recipe, data: Mapping[str, Loaded], rows: Sequence[Any]) -> str:
    """Return the card as Markdown; `rows` are those of the run."""
    adapters = recipe.adapters
    reads = "read before the text" if recipe.reads_instructions else "not read"
    through = ", through a mesh" if recipe.evaluate.mesh else ""
    return f"""# {recipe.result.name}

Trained by `mmesh train` {version("mmesh")} from `{recipe.model}`, with adapters of rank
{adapters.rank} (alpha {adapters.alpha:g}) that are merged into the weights, and seed {recipe.seed}.
Instructions of queries, where the training data had any and the family can, are {reads}.
What the base model's card says of its limits and licence holds for this one as well.

Serve it: `MMESH_ENCODER_MODEL=FOLDER`, or `mmesh up --encoder FOLDER`.

## Data

{_table(["data", "examples", "left out", "SHA-256 of what they say"], _data_rows(data))}

## Stages

{_table(["stage", "from", "data", "steps", "batch", "negatives", "rate", "loss at the end"], _stage_rows(recipe, rows))}

## Figures on held-out data

Queries are searched exactly among all candidates of any modality{through}. Mean, and 95 % interval.

{_table(["stage", "data", *_COUNTS, *_METRICS], _figure_rows(rows)) if recipe.held_out else "None were measured."}
"""  # noqa: E501  # rows of tables


_COUNTS = ("queries", "pool", "left out")
_METRICS = ("hit@1", "hit@10", "mrr@10", "mismatch")


def _data_rows(data: Mapping[str, Loaded]) -> list[list[str]]:
    return [
        [name, f"{len(one.examples):,}", str(len(one.broken)), one.digest()]
        for name, one in data.items()
    ]


def _stage_rows(recipe: Recipe, rows: Sequence[Any]) -> list[list[str]]:
    done = {row.stage: row for row in rows}
    return [
        [
            one.name,
            one.begin,
            ", ".join(f"{name} {w:g}" for name, w in one.data.items()),
            str(done[one.name].steps),
            str(one.batch),
            f"{one.negatives}{' mined' if one.mine else ''}",
            f"{one.learning_rate:g}",
            f"{done[one.name].loss:.4f}",
        ]
        for one in recipe.stages
    ]


def _figure_rows(rows: Sequence[Any]) -> list[list[str]]:
    lines = []
    for row in rows:
        for name, figures in row.figures.items():
            counts = [f"{figures[key]['value']:,.0f}" for key in _COUNTS if key in figures]
            cells = [
                f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
                for one in (figures[metric] for metric in _METRICS)
            ]
            lines.append([row.stage, name, *counts, *cells])
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
