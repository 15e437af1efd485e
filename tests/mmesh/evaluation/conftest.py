"""A miniature M-BEIR: all 16 tasks in the published layout, of texts and pictures made here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image as Pillow

DATASETS = (
    "VisualNews", "Fashion200K", "WebQA", "EDIS", "NIGHTS", "OVEN", "InfoSeek", "FashionIQ",
    "CIRR", "MSCOCO",
)  # fmt: skip
TASKS = (
    "visualnews_task0", "mscoco_task0", "fashion200k_task0", "webqa_task1", "edis_task2",
    "webqa_task2", "visualnews_task3", "mscoco_task3", "fashion200k_task3", "nights_task4",
    "oven_task6", "infoseek_task6", "fashioniq_task7", "cirr_task7", "oven_task8",
    "infoseek_task8",
)  # fmt: skip
SHAPES = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}
NOUNS = {"text": "a paragraph", "image": "an image", "image,text": "an image-description pair"}
COLOURS = {
    "red": (210, 40, 40),
    "green": (50, 160, 60),
    "blue": (40, 70, 200),
    "yellow": (230, 210, 50),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "brown": (120, 80, 40),
}
SCENES = (  # noqa: SIM905  # easier to read than quoted words
    "harbour glacier violin tractor orchid comet bakery lantern canyon piano falcon anchor meadow"
).split()
NULLS = (None, "", "null")


def write_lines(path: Path, rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))


class MiniMBeir:
    """Writes a folder; each task has `candidates` of its own pool and `queries` that they answer.

    A thing is a colour and a scene: its picture is that colour, its text says both.
    """

    def __init__(self, root: Path, candidates: int, queries: int) -> None:
        self.root, self._random = root, random.Random(5)
        self._numbers = dict.fromkeys(range(10), 0)
        self._pictures: set[str] = set()
        self._union: list[dict[str, object]] = []
        for task in TASKS:
            self._write_task(task, candidates, queries)
        write_lines(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", self._union)
        write_lines(root / "instructions/query_instructions.tsv", self._prompts())

    def _write_task(self, task: str, candidates: int, queries: int) -> None:
        name, _, number = task.partition("_task")
        dataset = [one.lower() for one in DATASETS].index(name)
        shape = SHAPES[int(number)]
        things = [self._thing() for _ in range(candidates)]
        pool = [self._candidate(dataset, thing, shape[1]) for thing in things]
        self._union += pool
        special = "_test" if name == "mscoco" else ""
        write_lines(self.root / f"cand_pool/local/mbeir_{task}{special}_cand_pool.jsonl", pool)
        rows, qrels = [], []
        for position in range(queries):
            thing, qid = things[position], f"{dataset}:{int(number) * 100 + position + 1}"
            alike = [c for t, c in zip(things, pool, strict=True) if t == thing]
            truths = [str(candidate["did"]) for candidate in alike]
            rows.append(self._query(qid, thing, shape[0]) | {"pos_cand_list": truths})
            qrels += [f"{qid} 0 {truth} 1 {number}" for truth in truths]
        write_lines(self.root / f"query/test/mbeir_{task}_test.jsonl", rows)
        write_lines(self.root / f"qrels/test/mbeir_{task}_test_qrels.txt", qrels)

    def _thing(self) -> tuple[str, str]:
        return self._random.choice(list(COLOURS)), self._random.choice(SCENES)

    def _candidate(self, dataset: int, thing: tuple[str, str], modality: str) -> dict[str, object]:
        self._numbers[dataset] += 1
        did = f"{dataset}:{self._numbers[dataset]}"
        text, image = self._parts(f"{did} {thing}", thing, modality)
        spelled = self._random.choice(["image,text", "text,image"])
        shown = spelled if modality == "image,text" else modality
        return {"did": did, "txt": text, "img_path": image, "modality": shown, "src_content": None}

    def _query(self, qid: str, thing: tuple[str, str], modality: str) -> dict[str, object]:
        text, image = self._parts(f"{qid}? {thing}", thing, modality)
        row: dict[str, object] = {"qid": qid, "query_modality": modality, "task_id": 0}
        row |= {"query_src_content": None, "neg_cand_list": []}
        spelled = {"query_txt": text, "query_img_path": image}
        return row | {key: value for key, value in spelled.items() if value is not ...}

    def _parts(self, seed: str, thing: tuple[str, str], modality: str) -> tuple[object, object]:
        colour, scene = thing
        nothing = self._random.choice([*NULLS, ...]) if "?" in seed else self._random.choice(NULLS)
        text = f"a {colour} {scene} in the morning" if "text" in modality else nothing
        return text, self._picture(seed, colour) if "image" in modality else nothing

    def _picture(self, seed: str, colour: str) -> str:
        own = random.Random(seed)
        name = f"mbeir_images/{own.getrandbits(40):010x}.jpg"
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = tuple(max(0, min(255, one + own.randint(-25, 25))) for one in COLOURS[colour])
        Pillow.new("RGB", (64, 48), shade).save(path)
        return name

    def _prompts(self) -> list[str]:
        head = "query_modality\tcand_modality\tdataset_name\tdataset_id"
        rows = [head + "".join(f"\tprompt_{number}" for number in range(1, 5))]
        for task in TASKS:
            name, _, number = task.partition("_task")
            dataset = [one.lower() for one in DATASETS].index(name)
            query, wanted = SHAPES[int(number)]
            prompts = "\t".join(f"Find {NOUNS[wanted]}, way {way}" for way in range(1, 5))
            rows.append(f"{query}\t{wanted}\t{DATASETS[dataset]}\t{dataset}\t{prompts}")
        return rows


@pytest.fixture(scope="session")
def mini_mbeir(tmp_path_factory) -> Callable[[int, int], Path]:
    """Make a miniature M-BEIR with so many candidates and queries in each task."""

    def make(candidates: int, queries: int) -> Path:
        root = tmp_path_factory.mktemp("mbeir")
        return MiniMBeir(root, candidates, queries).root

    return make
