"""The tables of a report, as plain texts for whoever prints them."""

from __future__ import annotations

from dataclasses import dataclass

from mmesh.evaluation.bootstrap import Estimate
from mmesh.evaluation.comparing import Compared
from mmesh.evaluation.report.published import Published, published_for
from mmesh.evaluation.results import Results, TaskResult


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables_of(results: Results) -> list[Table]:
    """Return all tables of a report that have rows."""
    tables = [
        headline_table(results),
        _metrics_table(results),
        _groups_table(results),
        _modality_table(results),
        _speed_table(results),
        _trouble_table(results),
        _rejections_table(results),
    ]
    return [table for table in tables if table.rows]


def headline_table(results: Results) -> Table:
    """Return a row for each task: its headline in each pool, beside what is published."""
    published = published_for(results.dataset)
    columns = ["task", "wanted", "queries", "metric", *(f"{way} [95 %]" for way in results.ways)]
    columns += [one.title for one in published]
    first = {task.task: task for task in reversed(results.tasks)}
    rows = [_headline_row(results, task, published) for task in reversed(first.values())]
    if len(rows) > 1:
        averages = [percent(results.averages[way]) for way in results.ways]
        others = [f"{one.average:.1f}" if one.average else "" for one in published]
        rows.append(["average", "", "", "", *averages, *others])
    return Table("Figures in percent", columns, rows)


def _headline_row(
    results: Results, task: TaskResult, published: tuple[Published, ...]
) -> list[str]:
    found = [results.of(task.task, way) for way in results.ways]
    figures = [percent(one.figures[one.headline]) if one else "" for one in found]
    others = [one.tasks.get(task.task) for one in published]
    return [
        task.task,
        task.wanted or "any",
        f"{task.queries:,}",
        task.headline,
        *figures,
        *(f"{value:.1f}" if value is not None else "" for value in others),
    ]


def percent(estimate: Estimate) -> str:
    """Return a figure with its interval, in percent."""
    value, low, high = (100 * one for one in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _metrics_table(results: Results) -> Table:
    names = list(dict.fromkeys(name for task in results.tasks for name in task.figures))
    rows = [
        [
            task.task,
            task.way,
            *(f"{100 * task.figures[n].value:.2f}" if n in task.figures else "" for n in names),
        ]
        for task in results.tasks
    ]
    return Table("All metrics in percent", ["task", "pool", *names], rows)


def _groups_table(results: Results) -> Table:
    rows = [
        [f"{task.task}: {group}", task.way, task.headline, f"{100 * value:.1f}"]
        for task in results.tasks
        for group, value in task.groups.items()
    ]
    return Table("By kind of query", ["queries", "pool", "metric", "percent"], rows)


def _modality_table(results: Results) -> Table:
    rows = [
        [
            task.task,
            task.way,
            task.wanted or "any",
            f"{100 * task.figures['mismatch'].value:.1f}" if "mismatch" in task.figures else "",
            *(f"{100 * part:.1f}" for part in task.share.values()),
            ", ".join(f"{name} {count:,}" for name, count in task.target_sources.items()),
        ]
        for task in results.tasks
    ]
    columns = ["task", "pool", "wanted", "mismatch %", "text %", "image %", "image_text %"]
    return Table("Modalities of the first 10 hits", [*columns, "target from"], rows)


def _speed_table(results: Results) -> Table:
    stages = list(dict.fromkeys(stage for task in results.tasks for stage in task.latency_ms))
    rows = [
        [
            task.task,
            task.way,
            *("{:.1f} / {:.1f}".format(*task.latency_ms.get(stage, (0, 0))) for stage in stages),
            f"{task.pairs:,}",
            ", ".join(f"{name} {count:,}" for name, count in task.rerank_outcomes.items()),
        ]
        for task in results.tasks
    ]
    columns = ["task", "pool", *stages, "pairs judged", "queries judged"]
    return Table("Milliseconds by stage in the gateway, median / 99th percentile", columns, rows)


def _trouble_table(results: Results) -> Table:
    rows = []
    for task in results.tasks:
        skipped = ", ".join(f"{name} {count:,}" for name, count in task.degradations.items())
        counts = [task.refused, task.not_asked, task.unjudged, task.unknown, task.unknown_queries]
        if skipped or any(counts):
            rows.append([task.task, task.way, *(f"{count:,}" for count in counts), skipped])
    columns = [
        "task",
        "pool",
        "queries refused (count as 0)",
        "not asked: no picture",
        "without judgement",
        "judged candidates that the pool lacks",
        "judged queries that there are not",
        "degradations",
    ]
    return Table("What was not as it should be", columns, rows)


def _rejections_table(results: Results) -> Table:
    examples = results.rejections["examples"]
    counts = results.rejections["counts"]
    total = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
    rows = [list(map(str, example)) for example in examples]
    return Table(f"Rows that were not taken: {total}", ["where", "kind", "why"], rows)


def comparison_table(compared: list[Compared], a: str, b: str) -> Table:
    """Return a row for each task and average of two runs."""
    rows = [
        [
            one.task,
            one.way,
            one.metric,
            f"{one.queries:,}",
            f"{100 * one.a:.2f}",
            f"{100 * one.b:.2f}",
            percent(one.difference.estimate),
            f"{one.difference.p_value:.4f}",
        ]
        for one in compared
    ]
    columns = ["task", "pool", "metric", "queries", f"A: {a}", f"B: {b}", "B - A [95 %]", "p"]
    return Table("Two runs on the same queries, in percent", columns, rows)


def markdown_of(table: Table) -> str:
    """Return a table in Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return f"## {table.title}\n\n" + "\n".join(lines) + "\n"
