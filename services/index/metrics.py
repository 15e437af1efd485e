"""The metrics that the index service exports."""

from prometheus_client import Counter, Gauge, Histogram

from mmesh.serving.telemetry import SECONDS

write_seconds = Histogram(
    "mmesh_index_write_seconds", "Seconds of a durable write.", buckets=SECONDS
)
search_seconds = Histogram(
    "mmesh_index_search_seconds", "Seconds of one search call's work.", buckets=SECONDS
)
queue_seconds = Histogram(
    "mmesh_index_queue_seconds", "Seconds a search waited for a thread.", buckets=SECONDS
)
written_total = Counter("mmesh_index_written_total", "Candidates written or deleted.")
candidates = Gauge(
    "mmesh_index_candidates", "Candidates that this shard can find.", ["collection", "modality"]
)
vector_bytes = Gauge("mmesh_index_vector_bytes", "Bytes of vectors in memory.")
lag = Gauge(
    "mmesh_index_lag_writes", "Writes in the log that this shard has not applied.", ["collection"]
)
tail_failures_total = Counter("mmesh_index_tail_failures_total", "Looks at the log that failed.")
