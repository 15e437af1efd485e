"""Run files: TREC's six columns for other tools, UniIR's seven, and the servers' submissions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmesh.evaluation.datasets.dataset import Query, Task
from mmesh.evaluation.live.answers import Answer
from mmesh.evaluation.whole_files import written_whole


def write_runs(
    task: Task, name: str, queries: Iterator[Query], answers: Mapping[str, Answer], folder: Path
) -> None:
    """Write `NAME.trec` and `NAME.uniir.txt`, queries in the order of the data set.

    TREC: `query Q0 candidate rank score run`; UniIR adds the number of the kind of task.
    """
    folder.mkdir(exist_ok=True)
    trec, uniir = folder / f"{name}.trec", folder / f"{name}.uniir.txt"
    with written_whole(trec) as first, written_whole(uniir) as second:
        for query in queries:
            answer = answers.get(query.id)
            for rank, hit in enumerate(answer.hits if answer else (), start=1):
                row = f"{query.id} Q0 {hit.id} {rank} {hit.score:.9g} {name}"
                first.write(row + "\n")
                second.write(f"{row} {task.number}\n")


def write_submission(task: Task, name: str, answers: Mapping[str, Answer], folder: Path) -> None:
    """Write what CIRCO's and CIRR's servers take: an object of queries and ranked candidates."""
    ranked: dict[str, object] = {}
    subset = name.partition(".")[0].endswith("-subset")
    if name.startswith("cirr"):
        ranked = {"version": "rc2", "metric": "recall_subset" if subset else "recall"}
    most = 3 if subset else 50
    for query, answer in answers.items():
        ids: list[str] | list[int] = [hit.id for hit in answer.hits[:most]]
        if name.startswith("circo"):
            ids = [int(one) for one in ids]
        ranked[query] = ids
    with written_whole(folder / f"{name}.submission.json") as file:
        json.dump(ranked, file)
