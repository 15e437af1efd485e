"""From packages to shipped files: the whole build, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmesh.models.encoders.lite import artefacts
from mmesh.models.encoders.lite.image import Head, ImageTower, Names
from mmesh.models.encoders.lite.sessions import open_session
from mmesh.models.encoders.lite.text import TextTower
from mmesh.training.lite_model import (
    evaluate,
    features,
    frozen,
    head,
    lessons,
    pictures,
    splits,
)
from mmesh.training.lite_model.features import Features, embed_texts
from mmesh.training.lite_model.pictures import Picture
from mmesh.training.lite_model.sets import read_splits
from mmesh.training.lite_model.splits import Splits

THREADS = 2
FEATURES_CACHE = "views.npz"


@dataclass(frozen=True, slots=True)
class Built:
    """What was measured, and on how many pictures."""

    recall: dict[str, dict[str, float]]
    """By test set; in per cent."""
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Test:
    """Pictures to search among, and the places of those to ask for."""

    name: str
    pictures: Sequence[Picture]
    asked: Sequence[int]


def build(out: Path, work: Path, *, with_dev: bool = True) -> Built:
    """Write every artefact but card and manifest into `out`, and measure the result.

    `with_dev=False` leaves `dev` out of training and measures it instead of the tests, which is
    how settings are chosen.
    """
    out.mkdir(parents=True, exist_ok=True)
    sets = read_splits(work)
    print("writing graphs, tokenizer and classes", flush=True)
    frozen.write_text_files(out, work)
    frozen.write_image_graph(out, work)
    text = _text_tower(out)
    frozen.write_classes(out, work, text)
    seen = _features(out, work, sets)
    train = trained_on(sets, seen, with_dev=with_dev)
    print(f"training on {len(train)} pictures", flush=True)
    head.write(out / artefacts.HEAD, head.train(lessons.lessons(train, seen, text)))
    classes = Names.load(out / artefacts.CLASSES)
    lessons.write_vocabulary(out, classes, train, text)
    image = _image_tower(out)
    lessons.write_calibration(out, train, seen, text, image)
    tests = _tests(sets, train, with_dev=with_dev)
    counts = {test.name: len(test.asked) for test in tests}
    measured = {test.name: _measure(test, seen, text, image) for test in tests}
    return Built(measured, {"train": len(train), **counts})


def trained_on(sets: Splits, seen: Features, *, with_dev: bool) -> list[Picture]:
    """Return the readable pictures to train on.

    None is called like a held-out emoji or nearly equal to a held-out clip art.
    """
    keys = set(seen.keys)
    offered, held_out = [*sets.train], [*sets.test, *sets.dev]
    if with_dev:
        offered, held_out = [*sets.dev, *sets.train], [*sets.test]
    readable = [picture for picture in offered if picture.key in keys]
    named = splits.without_names(readable, sets.unseen)
    rows, others = seen.rows(named), seen.rows(held_out)
    near = splits.near_duplicates(seen.features[rows], seen.features[others])
    far = [picture for picture, is_near in zip(named, near, strict=True) if not is_near]
    return splits.capped(far)


def _features(out: Path, work: Path, sets: Splits) -> Features:
    everything = [*sets.train, *sets.dev, *sets.test, *sets.seen, *sets.unseen]
    session = open_session(out / artefacts.IMAGE_GRAPH, "onnxruntime", threads=1)
    graph = artefacts.sha256_of(out / artefacts.IMAGE_GRAPH)[:12]
    return features.read_features(everything, session, work / f"{graph}-{FEATURES_CACHE}")


def _text_tower(out: Path) -> TextTower:
    session = open_session(artefacts.text_graph(out), "onnxruntime", threads=THREADS)
    return TextTower(out / artefacts.TOKENIZER, session)


def _image_tower(out: Path) -> ImageTower:
    session = open_session(out / artefacts.IMAGE_GRAPH, "onnxruntime", threads=1)
    trained = Head.load(out / artefacts.HEAD)
    classes = Names.load(out / artefacts.CLASSES)
    vocabulary = Names.load(out / artefacts.VOCABULARY)
    return ImageTower(session, trained, classes, lambda: vocabulary)


def _tests(sets: Splits, train: Sequence[Picture], *, with_dev: bool) -> list[Test]:
    if not with_dev:
        return [Test("openclipart_dev", sets.dev, range(len(sets.dev)))]
    strict = splits.strict_rows(sets.test, train)
    return [
        Test("openclipart_test", sets.test, range(len(sets.test))),
        Test("openclipart_strict", sets.test, strict),
        Test("twitter_seen", sets.seen, range(len(sets.seen))),
        Test("twitter_unseen", sets.unseen, range(len(sets.unseen))),
    ]


def _measure(test: Test, seen: Features, text: TextTower, image: ImageTower) -> dict[str, float]:
    rows = seen.rows(test.pictures)
    vectors = features.vectors(seen, rows, image)
    titles = embed_texts(text, [picture.title for picture in test.pictures])
    names = [picture.concept or pictures.normalised(picture.title) for picture in test.pictures]
    measured = evaluate.both_ways(titles, vectors, names, test.asked)
    print(f"{test.name}: {measured}", flush=True)
    return measured
