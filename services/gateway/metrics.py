"""The metrics that the gateway service exports."""

from prometheus_client import Counter, Gauge, Histogram

from mmesh.errors import InputTooLong, InvalidField, InvalidImage
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
    "mmesh_gateway_degradations_total",
    "Searches that skipped something, by reason; one counts once for each reason.",
    ["reason"],
)
# So that the first one is a rise, and what is taken off another rate is there.
for _reason in ("SHARD_UNAVAILABLE", "RERANK_UNAVAILABLE", "RERANK_SKIPPED"):
    degradations_total.labels(_reason)
shards_asked_total = Counter(
    "mmesh_gateway_shards_asked_total", "Shards that searches needed, as often as they did."
)
shards_answered_total = Counter(
    "mmesh_gateway_shards_answered_total",
    "Of these, those that answered: the share is the coverage of answers.",
)
slow_searches_total = Counter(
    "mmesh_gateway_slow_searches_total", "Searches that were logged for being slow."
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
for _error in (InvalidField, InvalidImage, InputTooLong):
    mirror_refused_total.labels(_error.reason)
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
    "mmesh_gateway_replica_retries_total",
    "Searches of a shard that went on to another replica: one failed, or had its part of the time.",
)
hedges_total = Counter(
    "mmesh_gateway_hedges_total",
    "Searches of a shard that asked another replica before the first, a slow one, had answered.",
)
