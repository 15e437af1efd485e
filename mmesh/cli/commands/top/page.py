"""What the page says: a window's numbers by the names that operators know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmesh.cli.commands.top.alerts import Alert
from mmesh.cli.commands.top.troubles import troubles_of
from mmesh.cli.commands.top.window import Window

SEARCHES = {"method": r".*\.RetrievalService/Search(Batch)?"}
WORK = {"method": r".*/(?!GetShard$)\w+"}
"""Calls of anything but gateways' looks at shards, one a second."""
FAILED = {"code": "(?!OK$).*"}
STAGES = ("plan", "encode", "search", "calibrate", "merge", "rerank", "fetch", "answer")
KINDS = ("gateway", "encoder", "index", "reranker")


@dataclass(frozen=True, slots=True)
class Times:
    """Latencies in seconds; None where nothing happened."""

    mean: float | None
    p50: float | None
    p99: float | None

    @classmethod
    def of(cls, window: Window, histogram: str, **where: str) -> Times:
        """Return those of a histogram."""
        p50, p99 = (window.quantile(share, histogram, **where) for share in (0.5, 0.99))
        return cls(window.mean(histogram, **where), p50, p99)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the mesh as a whole does; rates are by the second, shares None where nothing was."""

    searches: float
    failed: float
    slow: float
    running: float
    times: Times
    coverage: float | None
    """Shards that answered, of those that searches needed."""
    embeddings_found: float | None
    """Query embeddings that the gateway remembered."""
    scores_found: float | None
    """Scores that the reranker remembered."""
    ingested: float
    refused: float
    degradations: dict[str, float]
    hits: dict[str, float]
    """By modality."""


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process."""

    name: str
    kind: str
    problem: str
    """Why it does not answer; "" where it does."""
    calls: float
    failed: float
    times: Times
    queue_p99: float | None
    running: float | None
    """Searches of a gateway, calls of a reranker; None for others."""
    waiting: float | None
    """Tokens of an encoder, calls of a reranker; None for others."""
    candidates: float | None
    """That an index process can find; None for others, as below."""
    behind_s: float | None
    """How old its state is."""
    cores: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class Page:
    """All of it."""

    seconds: float
    """Between the two looks."""
    traffic: Traffic
    stages: dict[str, Times]
    replicas: dict[str, int]
    """By shard, as the gateway that sees least of them does."""
    processes: list[ProcessRow]
    troubles: list[str]
    alerts: list[Alert]


def page_of(window: Window, alerts: Sequence[Alert] = ()) -> Page:
    """Return what there is to say of a window, and of alerts that fire."""
    spans = [
        after.at - window.before[name].at
        for name, after in window.after.items()
        if name in window.before
    ]
    stages = {
        stage: Times.of(window, "mmesh_gateway_stage_seconds", stage=stage) for stage in STAGES
    }
    replicas = {
        dict(labels)["shard"]: int(min(values))
        for labels, values in window.gauges("mmesh_gateway_replicas").items()
    }
    return Page(
        max(spans, default=0.0),
        _traffic(window),
        {stage: times for stage, times in stages.items() if times.mean is not None},
        dict(sorted(replicas.items(), key=lambda one: int(one[0]))),
        [_row(name, window.of(name)) for name in window.after],
        list(troubles_of(window)),
        list(alerts),
    )


def _traffic(window: Window) -> Traffic:
    def found(counter: str, outcome: str) -> float | None:
        rates = window.rates(counter, "outcome")
        total = sum(rates.values())
        return rates.get(outcome, 0.0) / total if total else None

    def by(counter: str, label: str) -> dict[str, float]:
        return {value: rate for value, rate in window.rates(counter, label).items() if rate}

    return Traffic(
        searches=window.rate("mmesh_rpc_seconds_count", **SEARCHES),
        failed=window.rate("mmesh_rpc_seconds_count", **SEARCHES, **FAILED),
        slow=window.rate("mmesh_gateway_slow_searches_total"),
        running=window.gauge("mmesh_gateway_running_searches"),
        times=Times.of(window, "mmesh_rpc_seconds", **SEARCHES),
        coverage=window.share(
            "mmesh_gateway_shards_answered_total", "mmesh_gateway_shards_asked_total"
        ),
        embeddings_found=found("mmesh_gateway_embedding_cache_total", "hit"),
        scores_found=found("mmesh_reranker_score_cache_total", "hit"),
        ingested=window.rate("mmesh_gateway_ingested_total"),
        refused=window.rate("mmesh_gateway_rejected_total"),
        degradations=by("mmesh_gateway_degradations_total", "reason"),
        hits=by("mmesh_gateway_hits_total", "modality"),
    )


def _row(name: str, window: Window) -> ProcessRow:
    (scrape,) = window.after.values()
    kind = next((k for k in KINDS if any(n.startswith(f"mmesh_{k}_") for n in scrape.series)), "")
    return ProcessRow(
        name=name,
        kind=kind,
        problem=scrape.problem,
        calls=window.rate("mmesh_rpc_seconds_count", **WORK),
        failed=window.rate("mmesh_rpc_seconds_count", **WORK, **FAILED),
        times=Times.of(window, "mmesh_rpc_seconds", **WORK),
        queue_p99=window.quantile(0.99, f"mmesh_{kind}_queue_seconds"),
        running=_of_kind(window, kind, _RUNNING),
        waiting=_of_kind(window, kind, _WAITING),
        candidates=_of_kind(window, kind, {"index": "mmesh_index_candidates"}),
        behind_s=_of_kind(window, kind, {"index": "mmesh_index_staleness_seconds"}, max),
        cores=window.rate("process_cpu_seconds_total"),
        memory_bytes=window.gauge("process_resident_memory_bytes"),
    )


_RUNNING = {
    "gateway": "mmesh_gateway_running_searches",
    "reranker": "mmesh_reranker_running_calls",
}
_WAITING = {
    "encoder": "mmesh_encoder_waiting_cost",
    "reranker": "mmesh_reranker_waiting_calls",
}


def _of_kind(
    window: Window,
    kind: str,
    gauges: Mapping[str, str],
    how: Callable[[list[float]], float] = sum,
) -> float | None:
    return window.gauge(gauges[kind], how) if kind in gauges else None
