"""What an hour of training or less brings `lite` on two cores: German texts, and icons by tags.

One stage on German and English texts of Debian's packages and on the icons of one vendor, by the
recipe that `mmesh train` reads. The tests are never trained on: programs by the hash of their names
with their families (libraries, data, documents), icons by the hash of the first word of their name.
Those of the other vendor are found among each other, and none has a family that was trained on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import Report, options_of, run
from debian import Package, family, programs, translations, with_usable_synopsis
from mixed_sources import Row as Icon
from mixed_sources import rows_of
from training_rows import Log, alike, figure, picture_rows, value, write_programs, write_rows

from mmesh.training.errors import TrainingError
from mmesh.training.learners.learner import Adapting
from mmesh.training.lite_model.features import image_bytes
from mmesh.training.lite_model.splits import digest, is_held_out, words_of
from mmesh.training.loop import read_losses
from mmesh.training.recipe import BASE, WORK, Recipe, Stage
from mmesh.training.sources import Source
from mmesh.training.stages import Row, Run

LANGUAGE = "de"
TRAINED, OTHER = "tabler", "lucide"
"""The vendor whose icons are trained on, and the one whose icons are only found."""
DATA = {"german": 3.0, "english": 1.0, "icons": 3.0}
"""Weights; each batch is of one set."""
TESTS = ("german", "english", "icons", "vendor")
STAGE = "mixture"
DATA_VERSION = 2
"""Of what `write_data` writes: data of another version is not used again."""
Ways = Callable[[Icon], list[str]]
TIMES, POINTS, COST, SECONDS = 2.0, 0.10, 0.01, 3600


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Write the data, train, and put before and after side by side."""
    parts = ("packages", "programs", "icons", "held_programs", "held_english")
    root = options.work / "-".join(
        [f"gains{DATA_VERSION}", *(str(getattr(options, part)) for part in parts)]
    )
    write_data(root, options)
    recipe = recipe_of(root, options)
    try:
        rows = {row.stage: row for row in Run(recipe, Log(), restart=options.restart).run()}
    except TrainingError as error:
        raise SystemExit(str(error)) from None
    before, after = rows[BASE], rows[STAGE]
    for name in TESTS:
        found = before.figures[name]
        report.fact(f"queries and pool of {name}", [found[key]["value"] for key in _COUNTS])
    seconds = sum(step["seconds"] for step in read_losses(recipe.out / WORK / STAGE))
    report.fact("seconds of training", round(seconds))
    shown = [[name, *_cells(row)] for name, row in (("pre-trained", before), ("trained", after))]
    report.table("before and after training, in % (95 % interval)", _HEADER, shown)
    both = [
        [shown, *(round(100 * value(row, name, metric), 1) for row in (before, after))]
        for shown, (name, metric) in _COLUMNS.items()
    ]
    report.table("the same as numbers", ["test", "pre-trained", "trained"], both)
    _gates(report, before, after, seconds)


def recipe_of(root: Path, options: argparse.Namespace) -> Recipe:
    """Return one stage over all data."""
    stage = Stage(
        STAGE,
        DATA,
        steps=options.steps,
        batch=options.batch,
        mixed=False,
        learning_rate=options.rate,
        max_text_tokens=options.tokens,
    )
    return Recipe(
        root / "run",
        {name: Source(root / name, split="train") for name in DATA},
        (stage,),
        seed=options.seed,
        threads=options.threads,
        adapters=Adapting(options.rank, 4 * options.rank),
        held_out={name: Source(root / "held-out" / name, "test") for name in TESTS},
    )


# -- tables and gates

_COUNTS = ("queries", "pool")
_COLUMNS = {
    "German -> English R@10": ("german", "hit@10"),
    "German R@1": ("german", "hit@1"),
    "unseen icons R@10": ("icons", "hit@10"),
    "other vendor R@10": ("vendor", "hit@10"),
    "English R@1": ("english", "hit@1"),
    "English R@10": ("english", "hit@10"),
}
_HEADER = ["model", *_COLUMNS]


def _cells(row: Row) -> list[str]:
    return [figure(row, name, metric) for name, metric in _COLUMNS.values()]


def _gates(report: Report, before: Row, after: Row, seconds: float) -> None:
    ratio = value(after, "german", "hit@10") / max(value(before, "german", "hit@10"), 1e-9)
    report.fact(f"German: R@10, times as high (wanted: {TIMES:.0f})", round(ratio, 2))
    apart = value(after, "german", "hit@10", "low") - value(before, "german", "hit@10", "high")
    report.gate("German: R@10 is higher, intervals apart", apart, apart > 0)
    for name, shown in (("icons", "unseen concepts"), ("vendor", "another vendor")):
        gained = value(after, name, "hit@10") - value(before, name, "hit@10")
        report.gate(f"icons of {shown}: R@10 gains 10 points", gained, gained >= POINTS)
    for metric, shown in (("hit@1", "R@1"), ("hit@10", "R@10")):
        lost = value(before, "english", metric) - value(after, "english", metric)
        report.gate(f"English: loses at most a point of {shown}", lost, lost <= COST)
    report.gate("training takes at most an hour", seconds / SECONDS, seconds <= SECONDS)


# -- data


def write_data(root: Path, options: argparse.Namespace) -> None:
    """Write training and held-out data as folders that `mmesh evaluate` reads, unless they are."""
    done = root / "complete"
    if done.is_file():
        return
    _write_texts(root, options)
    _write_icons(root, options)
    done.touch()


def _write_texts(root: Path, options: argparse.Namespace) -> None:
    usable = with_usable_synopsis(programs(options.work))
    held, rest = usable[: options.held_programs], usable[options.held_programs :]
    secret, names = {family(one.name) for one in held}, {one.name for one in held}
    pairs = translations(options.work, LANGUAGE)
    translated = [other for original, other in pairs if original.name in names]
    texts = {text for one in (*held, *translated) for text in _folded(one)}

    def is_free(*packages: Package) -> bool:
        return all(
            family(one.name) not in secret and texts.isdisjoint(_folded(one)) for one in packages
        )

    shown = [pair for pair in pairs if is_free(*pair)]
    shown.sort(key=lambda pair: digest(pair[0].name))
    _write_translations(root / "german", shown[: options.packages])
    free = [one for one in rest if is_free(one)]
    write_programs(root / "english", free[: options.programs], "train")
    write_programs(root / "held-out/english", held[: options.held_english], "test")
    pool = [{"id": one.name, "text": one.description} for one in held]
    write_rows(root / "held-out/german/pool.jsonl", pool)
    queries = [
        _query(f"{LANGUAGE}:{one.name}", one.synopsis, "text", [one.name])
        for original, one in with_usable_pairs(pairs)
        if original.name in names
    ]
    write_rows(root / "held-out/german/queries.jsonl", queries)


def with_usable_pairs(pairs: Iterable[tuple[Package, Package]]) -> list[tuple[Package, Package]]:
    """Return those whose translated synopsis does not hold their name."""
    usable = {one.name for one in with_usable_synopsis(one for _, one in pairs)}
    return [pair for pair in pairs if pair[1].name in usable]


def _texts(package: Package) -> tuple[str, str]:
    return package.synopsis, package.description


def _folded(package: Package) -> list[str]:
    """Return the texts as they are compared: in small letters, with single blanks."""
    return [" ".join(text.casefold().split()) for text in _texts(package)]


def _write_translations(folder: Path, pairs: Sequence[tuple[Package, Package]]) -> None:
    """Write English synopses and descriptions; German ones seek both."""
    pool, queries = [], []
    for original, translated in pairs:
        ids = [f"{part}:{original.name}" for part in ("synopsis", "description")]
        pool += [{"id": i, "text": t} for i, t in zip(ids, _texts(original), strict=True)]
        queries += [
            _query(f"{LANGUAGE}-{i}", text, "text", ids)
            for i, text in zip(ids, _texts(translated), strict=True)
        ]
    write_rows(folder / "pool.jsonl", pool)
    write_rows(folder / "queries.jsonl", queries)


def _write_icons(root: Path, options: argparse.Namespace) -> None:
    ours, theirs = (rows_of(name, options.work) for name in (TRAINED, OTHER))
    free = [icon for icon in ours if not is_held_out(_kin(icon))]
    known = {_kin(icon) for icon in free}
    unseen = [icon for icon in ours if is_held_out(_kin(icon))]
    vendor = [icon for icon in theirs if _kin(icon) not in known]
    shown = _unlike(free, [*unseen, *vendor])
    shown.sort(key=lambda icon: digest(icon.key))
    _write_found(root / "icons", shown[: options.icons], _ways_to_ask)
    _write_found(root / "held-out/icons", unseen[: options.icons], _by_tags)
    _write_found(root / "held-out/vendor", vendor[: options.icons], _by_tags)


def _kin(icon: Icon) -> str:
    """Return the first word of an icon's name, which it shares with its variations."""
    return icon.key.partition("-")[0]


def _unlike(offered: Iterable[Icon], secret: Iterable[Icon]) -> list[Icon]:
    """Return the icons that have neither the picture nor the name of a secret one.

    Nor are they asked for by the tags of one, in any of the ways that icons are trained with.
    """
    secret = list(secret)
    names, tags = {words_of(icon.key) for icon in secret}, {icon.query for icon in secret}
    pictures = {image_bytes(Path(icon.content)) for icon in secret}
    return [
        icon
        for icon in offered
        if words_of(icon.key) not in names
        and tags.isdisjoint(_ways_to_ask(icon))
        and image_bytes(Path(icon.content)) not in pictures
    ]


def _by_tags(icon: Icon) -> list[str]:
    return [icon.query]


def _ways_to_ask(icon: Icon) -> list[str]:
    """Return the tags, each half of them, and the name."""
    tags = icon.query.split(", ")
    halves = [", ".join(tags[0::2]), ", ".join(tags[1::2])]
    return [icon.query, icon.key.replace("-", " "), *filter(None, halves)]


def _write_found(folder: Path, icons: Sequence[Icon], ways: Ways) -> None:
    """Write icons and what finds them; icons that are asked for alike are all right answers."""
    pool = picture_rows(folder, [Path(icon.content) for icon in icons])
    same = alike(icon.query for icon in icons)
    asked: dict[str, list[str]] = {}
    for icon in icons:
        for text in ways(icon):
            asked.setdefault(text, []).extend(same[icon.query])
    write_rows(folder / "pool.jsonl", pool)
    queries = [
        _query(f"q{number}", text, "image", sorted(set(ids)))
        for number, (text, ids) in enumerate(asked.items())
    ]
    write_rows(folder / "queries.jsonl", queries)


def _query(name: str, text: str, target: str, relevant: Sequence[str]) -> dict[str, Any]:
    return {"id": name, "text": text, "target": target, "relevant": list(relevant)}


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--packages", type=int, default=20000, help="German, at most")
    parser.add_argument("--programs", type=int, default=8000, help="English, at most")
    parser.add_argument("--held-programs", type=int, default=2000, help="found in German")
    parser.add_argument("--held-english", type=int, default=1000, help="of them, in English")
    parser.add_argument("--icons", type=int, default=5000, help="of each set, at most")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=7e-4, help="learning rate")
    parser.add_argument("--rank", type=int, default=32, help="of the adapters")
    parser.add_argument("--tokens", type=int, default=48, help="where texts are cut in training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--restart", action="store_true", help="train anew")
    return run("training_gains", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
