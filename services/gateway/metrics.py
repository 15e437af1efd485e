"""The metrics that the gateway service exports."""

from prometheus_client import Counter, Gauge, Histogram

from mmesh.serving.telemetry import SECONDS

stage_seconds = Histogram(
    "mmesh_gateway_stage_seconds", "Seconds of a stage of a search.", ["stage"], buckets=SECONDS
)
hits_total = Counter(
    "mmesh_gateway_hits_total",
    "Hits answered, by modality: the modality share of results.",
    ["modality"],
)
degradations_total = Counter(
    "mmesh_gateway_degradations_total", "What searches skipped, by reason.", ["reason"]
)
embedding_cache_total = Counter(
    "mmesh_gateway_embedding_cache_total", "Query embeddings looked up.", ["outcome"]
)
running_searches = Gauge("mmesh_gateway_running_searches", "Searches that run now.")
ingested_total = Counter("mmesh_gateway_ingested_total", "Candidates stored by ingest streams.")
rejected_total = Counter(
    "mmesh_gateway_rejected_total", "Candidates refused by ingest streams, by reason.", ["reason"]
)
mirror_refused_total = Counter(
    "mmesh_gateway_mirror_refused_total",
    "Candidates stored that the model of the collection's mirror cannot encode, by reason.",
    ["reason"],
)
shard_sets = Gauge(
    "mmesh_gateway_shard_sets",
    "Shard sets that are whole: one, or two while one replaces the other.",
)
replicas = Gauge(
    "mmesh_gateway_replicas", "Processes that can be searched, of the set in use.", ["shard"]
)
shard_set_switches_total = Counter(
    "mmesh_gateway_shard_set_switches_total", "Times that searches moved to another shard set."
)
replica_retries_total = Counter(
    "mmesh_gateway_replica_retries_total", "Searches of a shard that went on to another replica."
)
hedges_total = Counter(
    "mmesh_gateway_hedges_total",
    "Searches of a shard that asked another replica before the first, a slow one, had answered.",
)
