"""The metrics that the index service exports."""

from prometheus_client import Counter, Gauge, Histogram

from mmesh.content import Modality
from mmesh.serving.telemetry import SECONDS

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
    "mmesh_index_refused_collections", "Collections that would not fit into memory."
)
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
    "Looks at the log, and tries to apply it, that failed, by kind of error.",
    ["error"],
)
segments = Gauge("mmesh_index_segments", "Sealed segments of this shard.", ["collection"])
segment_recall = Gauge(
    "mmesh_index_segment_recall",
    "Recall at 10 against exact search of the largest segment, measured when it was built.",
    ["collection", "modality"],
)
build_seconds = Histogram(
    "mmesh_index_build_seconds", "Seconds of building a segment.", buckets=MINUTES
)
build_failures_total = Counter(
    "mmesh_index_build_failures_total", "Builds that failed, by kind of error.", ["error"]
)
snapshot_seconds = Histogram(
    "mmesh_index_snapshot_seconds", "Seconds of storing a snapshot.", buckets=MINUTES
)
snapshot_failures_total = Counter(
    "mmesh_index_snapshot_failures_total",
    "Snapshots that could not be stored or were damaged, by reason.",
    ["reason"],
)
purge_failures_total = Counter(
    "mmesh_index_purge_failures_total",
    "Purges of the log that failed, by kind of error.",
    ["error"],
)


def forget_collection(name: str) -> None:
    """Stop exporting what is known of a collection that is gone."""
    for metric in (lag, staleness_seconds, segments):
        metric.remove_by_labels({"collection": name})
    for modality in Modality:
        labels = {"collection": name, "modality": modality.value}
        candidates.remove_by_labels(labels)
        segment_recall.remove_by_labels(labels)
