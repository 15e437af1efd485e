"""The metrics that the reranker service exports."""

from prometheus_client import Counter, Gauge, Histogram

from mmesh.serving.telemetry import SECONDS

judge_seconds = Histogram(
    "mmesh_reranker_judge_seconds", "Seconds of judging one call.", buckets=SECONDS
)
queue_seconds = Histogram(
    "mmesh_reranker_queue_seconds", "Seconds a call waited for its turn.", buckets=SECONDS
)
judged_total = Counter(
    "mmesh_reranker_judged_total", "Candidates judged; those whose score is remembered are not."
)
unjudged_total = Counter(
    "mmesh_reranker_unjudged_total",
    "Candidates not judged, by reason: DEADLINE, there was no time; BUDGET, that of the call is "
    "spent; or why the judge refuses them.",
    ["reason"],
)
for _reason in ("DEADLINE", "BUDGET"):  # there from the start, so that the first one is a rise
    unjudged_total.labels(_reason)
waiting_calls = Gauge("mmesh_reranker_waiting_calls", "Calls that wait for their turn.")
running_calls = Gauge("mmesh_reranker_running_calls", "Calls that are judged now.")
score_cache_total = Counter(
    "mmesh_reranker_score_cache_total", "Scores looked up, by outcome: hit or miss.", ["outcome"]
)
for _outcome in ("hit", "miss"):
    score_cache_total.labels(_outcome)
parity_max_abs_diff = Gauge(
    "mmesh_reranker_parity_max_abs_diff",
    "Largest difference of a probe's scores at the start: alone, together, shuffled, stored.",
)
