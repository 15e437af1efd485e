"""What each stage of MM-Embed's recipe does to `lite` on two cores: the shape of its table.

Trained on clip art and emoji with their titles, both ways, and then on synopses and descriptions of
Debian's programs. The tests are never trained on: clip art by title, emoji by concept and vendor
(`mmesh/training/lite_model/splits.py`), programs by the hash of their names. All candidates of a
test are searched exactly, whatever their modality, so the first hit may be of the wrong one.

In-batch negatives are those of one direction at a time, as in the paper, so they never are of the
wrong modality; mined ones are drawn from pictures and titles together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import Cell, Report, options_of, run
from debian import Package, programs, with_usable_synopsis
from training_rows import Log, alike, figure, picture_rows, value, write_programs, write_rows

from mmesh.models.encoders.families import EncoderChoice, open_encoder
from mmesh.training import held_out
from mmesh.training.errors import TrainingError
from mmesh.training.learners.learner import Adapting
from mmesh.training.lite_model import pictures
from mmesh.training.lite_model.pictures import Picture, normalised
from mmesh.training.lite_model.sets import read_splits
from mmesh.training.lite_model.splits import Splits, capped, digest, without_names
from mmesh.training.recipe import Recipe, Stage
from mmesh.training.sources import Source
from mmesh.training.stages import Row, Run

SHOW, NAME = "Find a picture that shows this.", "Find the title of this picture."
TAGGED, DESCRIBE = "Find the name that has these tags.", "Find the description of this program."
SHIPPED = "pre-trained"
TESTS = {
    "openclipart": "hit@10",
    "emoji": "hit@10",
    "titles": "hit@10",
    "mixed": "hit@10",
    "debian": "hit@1",
}
"""Metric of each held-out set; of `mixed` the mismatch rate as well."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Write the data, train, and put the stages side by side."""
    root = options.work / f"training-{options.pictures}-{options.programs}"
    write_data(root, options)
    held = {name: Source(root / "held-out" / name, "test") for name in TESTS}
    model = open_encoder(EncoderChoice(threads=options.threads))
    shipped = {name: held_out.measure(model, source) for name, source in held.items()}
    recipe = recipe_of(root, options, held)
    try:
        rows = Run(recipe, Log(), restart=options.restart).run()
    except TrainingError as error:
        raise SystemExit(str(error)) from None
    rows = [Row(SHIPPED, 0, "", 0.0, shipped), *rows]
    for name in TESTS:
        found = shipped[name]
        report.fact(f"queries and pool of {name}", [found["queries"], found["pool"]])
    report.table("after each stage, in % (95 % interval)", _HEADER, [_cells(row) for row in rows])
    _gates(report, {row.stage: row for row in rows})


def recipe_of(root: Path, options: argparse.Namespace, held: dict[str, Source]) -> Recipe:
    """Return the three stages; the second begins with the pre-trained model, as in the paper."""
    drawings = {"show": 1.0, "name": 1.0}
    usual = {"batch": options.batch, "learning_rate": options.rate, "mixed": False}
    mined = {"mine": True, "negatives": 1}
    steps, text_steps = options.steps, options.steps // 3
    stages = (
        Stage("in-batch", drawings, steps=steps, **usual),
        Stage("mined", drawings, steps=steps, **usual, **mined),
        Stage(
            "mined-and-text",
            drawings | {"describe": 2.0},
            "mined",
            steps=text_steps,
            max_text_tokens=128,
            **(usual | {"learning_rate": options.rate / 5}),
            **mined,
        ),
    )
    data = {name: Source(root / name, split="train") for name in (*drawings, "describe")}
    return Recipe(
        root / "run",
        data,
        stages,
        seed=options.seed,
        threads=options.threads,
        adapters=Adapting(8, 64),
        held_out=held,
    )


# -- tables and gates

_HEADER = ["stage", "clip art R@10", "emoji R@10", "picture -> title R@10", "mixed R@10",
           "mixed mismatch", "Debian R@1", "steps", "loss"]  # fmt: skip


def _cells(row: Row) -> list[Cell]:
    shown = [figure(row, name, metric) for name, metric in TESTS.items()]
    shown.insert(4, figure(row, "mixed", "mismatch"))
    return [row.stage, *shown, row.steps, round(row.loss, 3)]


def _gates(report: Report, rows: dict[str, Row]) -> None:
    shipped, batch, mined, text = (
        rows[name] for name in (SHIPPED, "in-batch", "mined", "mined-and-text")
    )
    low = value(batch, "mixed", "mismatch", "low")
    high = value(mined, "mixed", "mismatch", "high")
    report.gate("mined: mismatch below in-batch, intervals apart", high - low, high < low)
    for name in ("openclipart", "emoji"):
        lost = value(batch, name, "hit@10", "low") - value(mined, name, "hit@10")
        report.gate(f"mined: R@10 of {name} within in-batch's interval", lost, lost <= 0)
    cost = value(shipped, "debian", "hit@1") - value(mined, "debian", "hit@1")
    back = value(text, "debian", "hit@1") - value(mined, "debian", "hit@1")
    share = back / cost if cost > 0 else 1.0
    report.gate("text to text: gives back 90 % of the text recall", share, share >= 0.9)
    lost = value(mined, "openclipart", "hit@10") - value(text, "openclipart", "hit@10")
    report.gate("text to text: costs at most a point of clip art R@10", lost, lost <= 0.01)


# -- data


def write_data(root: Path, options: argparse.Namespace) -> None:
    """Write training and held-out data as folders that `mmesh evaluate` reads, unless they are."""
    done = root / "complete"
    if done.is_file():
        return
    sets = read_splits(options.work / "packages")
    packages = with_usable_synopsis(programs(options.work))
    held, rest = packages[: options.held_programs], packages[options.held_programs :]
    _write_drawings(root, _training(sets, options.pictures))
    write_programs(root / "describe", rest[: options.programs], "train", DESCRIBE)
    write_programs(root / "held-out/debian", held, "test", DESCRIBE)
    test = sets.test[: options.held_pictures]
    emoji = sets.unseen[: options.held_pictures]
    _write_pictures(root / "held-out/openclipart", test)
    _write_pictures(root / "held-out/emoji", emoji)
    _write_titles(root / "held-out/titles", test)
    _write_mixed(root / "held-out/mixed", test, rest[-2000:], options)
    done.touch()


def _training(sets: Splits, count: int) -> list[Picture]:
    """Return the pictures to train on: none is called like a held-out one."""
    offered = capped(without_names(sets.train, [*sets.unseen, *sets.test, *sets.dev]))
    return sorted(offered, key=lambda picture: digest(picture.key))[:count]


def _write_drawings(root: Path, chosen: Sequence[Picture]) -> None:
    """Write one pool of pictures and titles, and queries for it both ways, each for itself."""
    pool = picture_rows(root / "show", [one.path for one in chosen])
    titles = {normalised(picture.title): picture.title for picture in chosen}
    pool += [{"id": _title_id(name), "text": title} for name, title in titles.items()]
    same = alike(map(_name, chosen))
    show = [
        {
            "id": f"q-{_title_id(name)}",
            "text": title,
            "target": "image",
            "instruction": SHOW,
            "relevant": same[name],
        }
        for name, title in titles.items()
    ]
    name = [
        {
            "id": f"q:{row['id']}",
            "image": row["image"],
            "target": "text",
            "instruction": NAME,
            "relevant": [_title_id(normalised(picture.title))],
        }
        for row, picture in zip(pool, chosen, strict=False)
    ]
    write_rows(root / "show/pool.jsonl", pool)
    write_rows(root / "show/queries.jsonl", show)
    (root / "name").mkdir(parents=True, exist_ok=True)
    link = root / "name/images"
    if not link.exists():
        link.symlink_to((root / "show/images").resolve())
    write_rows(root / "name/pool.jsonl", pool)
    write_rows(root / "name/queries.jsonl", name)


def _write_pictures(folder: Path, chosen: Sequence[Picture]) -> None:
    pool, same = picture_rows(folder, [one.path for one in chosen]), alike(map(_name, chosen))
    write_rows(folder / "pool.jsonl", pool)
    queries = [
        {
            "id": f"q{n}",
            "text": one.title,
            "target": "image",
            "instruction": SHOW,
            "relevant": same[_name(one)],
        }
        for n, one in enumerate(chosen)
    ]
    write_rows(folder / "queries.jsonl", queries)


def _write_titles(folder: Path, chosen: Sequence[Picture]) -> None:
    rows = picture_rows(folder, [one.path for one in chosen])
    titles = {normalised(picture.title): picture.title for picture in chosen}
    write_rows(
        folder / "pool.jsonl",
        [{"id": _title_id(name), "text": text} for name, text in titles.items()],
    )
    queries = [
        {
            "id": f"q{n}",
            "image": row["image"],
            "target": "text",
            "instruction": NAME,
            "relevant": [_title_id(normalised(one.title))],
        }
        for n, (row, one) in enumerate(zip(rows, chosen, strict=True))
    ]
    write_rows(folder / "queries.jsonl", queries)


def _write_mixed(
    folder: Path, chosen: Sequence[Picture], others: Sequence[Package], options: argparse.Namespace
) -> None:
    """Write pictures and texts in one pool: titles seek pictures, tags of emoji seek labels."""
    pool, same = picture_rows(folder, [one.path for one in chosen]), alike(map(_name, chosen))
    names = pictures.emoji_names(options.work / "packages")
    labels = {f"label:{concept}": label for concept, (label, _) in names.items()}
    pool += [{"id": key, "text": label} for key, label in labels.items()]
    pool += [{"id": f"deb:{one.name}", "text": one.synopsis} for one in others]
    known = {normalised(row["text"]) for row in pool if "text" in row}
    queries: list[dict[str, Any]] = [
        {
            "id": f"q{n}",
            "text": one.title,
            "target": "image",
            "instruction": SHOW,
            "relevant": same[_name(one)],
        }
        for n, one in enumerate(chosen)
        if normalised(one.title) not in known
    ]
    tagged = sorted(names.items(), key=lambda item: digest(item[0]))[: len(queries)]
    queries += [
        {
            "id": f"t:{concept}",
            "text": ", ".join(tags),
            "target": "text",
            "instruction": TAGGED,
            "relevant": [f"label:{concept}"],
        }
        for concept, (label, tags) in tagged
        if len(set(tags) - {label}) >= 2
    ]
    write_rows(folder / "pool.jsonl", pool)
    write_rows(folder / "queries.jsonl", queries)


def _title_id(name: str) -> str:
    return f"title:{name.replace(' ', '-')}"


def _name(picture: Picture) -> str:
    return normalised(picture.title)


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--pictures", type=int, default=6000, help="to train on, at most")
    parser.add_argument("--programs", type=int, default=8000, help="to train on, at most")
    parser.add_argument("--held-pictures", type=int, default=1820, help="of each test, at most")
    parser.add_argument("--held-programs", type=int, default=1000, help="of the test")
    parser.add_argument("--steps", type=int, default=600, help="of each of the first two stages")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--restart", action="store_true", help="train anew")
    return run("training_lite", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
