"""The metrics that the index service exports."""

from prometheus_client import Counter, Gauge, Histogram

from mmesh.serving.telemetry import SECONDS

_LOG, _STORE = ("DataLoss", "LogUnavailable"), ("StorageFull", "Unavailable")
"""Kinds of errors. Known labels of counters are there from the start, at 0: the first sample of a
series is no rise, so alerts would not see the event that makes it."""
MINUTES = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800)
COUNTS = (1, 2, 4, 8, 16, 32, 64)

write_seconds = Histogram(
    "mmesh_index_write_seconds", "Seconds of a durable write, waiting included.", buckets=SECONDS
)
group_writes = Histogram(
    "mmesh_index_group_writes", "Writes that shared a transaction.", buckets=COUNTS
)
written_total = Counter("mmesh_index_written_total", "Candidates written or deleted.")
search_seconds = Histogram(
    "mmesh_index_search_seconds", "Seconds of one search call's work.", buckets=SECONDS
)
queue_seconds = Histogram(
    "mmesh_index_queue_seconds", "Seconds a search waited for its turn.", buckets=SECONDS
)
search_batch = Histogram(
    "mmesh_index_search_batch", "Searches that shared a call of FAISS.", buckets=COUNTS
)
candidates = Gauge(
    "mmesh_index_candidates", "Candidates that this shard can find.", ["collection", "modality"]
)
memory_bytes = Gauge(
    "mmesh_index_memory_bytes",
    "Bytes in memory by part: vectors, ids, attributes, columns, delta, process or limit.",
    ["part"],
)
refused_collections = Gauge(
    "mmesh_index_refused_collections",
    "Collections that this shard cannot bring into step, by why: MEMORY_FULL, they would not fit; "
    "CORRUPT_DATA, their rows in the log are damaged; or the reason of another error.",
    ["reason"],
)
for _refusal in ("MEMORY_FULL", "CORRUPT_DATA"):
    refused_collections.labels(_refusal)
lag = Gauge(
    "mmesh_index_lag_writes", "Writes in the log that this shard has not applied.", ["collection"]
)
staleness_seconds = Gauge(
    "mmesh_index_staleness_seconds",
    "Seconds since this shard had applied all of the log.",
    ["collection"],
)
tail_failures_total = Counter(
    "mmesh_index_tail_failures_total",
    "Looks at the log that failed, by kind of error.",
    ["error"],
)
for _error in _LOG:
    tail_failures_total.labels(_error)
collection_failures_total = Counter(
    "mmesh_index_collection_failures_total",
    "Tries to bring a collection into step with the log that failed for what is its own matter, "
    "by kind of error.",
    ["error"],
)
for _error in ("DataLoss", "MemoryFull"):
    collection_failures_total.labels(_error)
damaged_total = Counter(
    "mmesh_index_damaged_total",
    "Times that something stored was found damaged or missing, by what it was.",
    ["what"],
)
for _what in ("log", "picture"):
    damaged_total.labels(_what)
histories_lost_total = Counter(
    "mmesh_index_histories_lost_total",
    "Views that began anew, and snapshots passed over, since the log lost writes that they "
    "reflect, by which of the two it was.",
    ["what"],
)
for _what in ("view", "snapshot"):
    histories_lost_total.labels(_what)
segments = Gauge("mmesh_index_segments", "Sealed segments of this shard.", ["collection"])
segment_recall = Gauge(
    "mmesh_index_segment_recall",
    "Recall at 10 against exact search of the largest segment, measured when it was built.",
    ["collection", "modality"],
)
recall_found_total = Counter(
    "mmesh_index_recall_probe_found_total",
    "Of the k nearest candidates, by exact search, those among the first k hits of a live search "
    "that was probed.",
    ["collection", "modality", "k"],
)
recall_wanted_total = Counter(
    "mmesh_index_recall_probe_wanted_total",
    "The k nearest candidates, by exact search, for live searches that were probed.",
    ["collection", "modality", "k"],
)
recall_probes_total = Counter(
    "mmesh_index_recall_probes_total",
    "Live searches chosen to be repeated exactly, by outcome: compared, or why not.",
    ["outcome"],
)
for _outcome in ("compared", "busy", "budget", "changed", "gone", "failed"):
    recall_probes_total.labels(_outcome)
recall_probe_cpu_seconds_total = Counter(
    "mmesh_index_recall_probe_cpu_seconds_total", "CPU seconds of repeating searches exactly."
)
build_seconds = Histogram(
    "mmesh_index_build_seconds", "Seconds of building a segment.", buckets=MINUTES
)
build_failures_total = Counter(
    "mmesh_index_build_failures_total", "Builds that failed, by kind of error.", ["error"]
)
for _error in ("BuildFailed", "StorageFull", "DataLoss"):
    build_failures_total.labels(_error)
snapshot_seconds = Histogram(
    "mmesh_index_snapshot_seconds", "Seconds of storing a snapshot.", buckets=MINUTES
)
snapshot_failures_total = Counter(
    "mmesh_index_snapshot_failures_total",
    "Snapshots that could not be stored or were damaged, by reason.",
    ["reason"],
)
for _reason in ("not_stored", "not_restored", "not_removed", "unreadable", "manifest", "mismatch",
                "format", "faiss", "missing", "size", "checksum"):  # fmt: skip
    snapshot_failures_total.labels(_reason)
snapshot_age_seconds = Gauge(
    "mmesh_index_snapshot_age_seconds",
    "Seconds since a snapshot of the collection was stored, or this process found it; 0 where "
    "nothing was written since.",
    ["collection"],
)
disk_free_bytes = Gauge(
    "mmesh_index_disk_free_bytes",
    "Bytes that are free on the disk of the log, the store or the scratch folder.",
    ["folder"],
)
disk_size_bytes = Gauge(
    "mmesh_index_disk_size_bytes",
    "Bytes of the disk of the log, the store or the scratch folder.",
    ["folder"],
)
purge_failures_total = Counter(
    "mmesh_index_purge_failures_total",
    "Purges of the log that failed, by kind of error.",
    ["error"],
)
for _error in (*_LOG, "Unavailable"):
    purge_failures_total.labels(_error)
store_bytes = Gauge(
    "mmesh_index_store_bytes",
    "Bytes of pictures in the store, as the last sweep of this process left them: named by "
    "candidates, or waiting to be removed.",
    ["state"],
)
store_sweep_time_seconds = Gauge(
    "mmesh_index_store_sweep_time_seconds",
    "When the last sweep of this process ended, in seconds since 1970; 0: it made none. Of the "
    "processes that share a store, the one with the newest has its bytes.",
)
store_removed_bytes_total = Counter(
    "mmesh_index_store_removed_bytes_total", "Bytes of pictures that this process removed."
)
gc_failures_total = Counter(
    "mmesh_index_gc_failures_total",
    "Sweeps of the store that failed, by kind of error.",
    ["error"],
)
for _error in (*_LOG, *_STORE, "FailedPrecondition"):
    gc_failures_total.labels(_error)


def forget_collection(name: str) -> None:
    """Stop exporting what is known of a collection that is gone."""
    for metric in (lag, staleness_seconds, segments, snapshot_age_seconds, candidates,
                   segment_recall, recall_found_total, recall_wanted_total):  # fmt: skip
        metric.remove_by_labels({"collection": name})
