"""The metrics that the encoder service exports."""

from prometheus_client import Counter, Gauge, Histogram

from mmesh.serving.telemetry import SECONDS

prepare_seconds = Histogram(
    "mmesh_encoder_prepare_seconds",
    "Seconds to decode, resize and tokenise an input.",
    ["group"],
    buckets=SECONDS,
)
queue_seconds = Histogram(
    "mmesh_encoder_queue_seconds",
    "Seconds an input waited for a batch.",
    ["priority"],
    buckets=SECONDS,
)
forward_seconds = Histogram(
    "mmesh_encoder_forward_seconds", "Seconds of a forward pass.", ["group"], buckets=SECONDS
)
forward_seconds.labels("")  # no pass yet is no work, not unknown work: see k8s' rules of demand
batch_inputs = Histogram(
    "mmesh_encoder_batch_inputs",
    "Inputs in a forward pass.",
    ["group"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
batch_cost_total = Counter(
    "mmesh_encoder_batch_cost_total", "Cost of the inputs of batches, in text tokens.", ["group"]
)
padding_cost_total = Counter(
    "mmesh_encoder_padding_cost_total",
    "Cost of what inputs were padded with, in text tokens; none where a model packs them.",
    ["group"],
)
waiting_cost = Gauge(
    "mmesh_encoder_waiting_cost", "Cost of the work that waits for a batch, in text tokens."
)
coalesced_total = Counter(
    "mmesh_encoder_coalesced_total", "Inputs answered by work that another call had started."
)
parity_max_abs_diff = Gauge(
    "mmesh_encoder_parity_max_abs_diff",
    "Largest difference of a probe's vectors at start-up: alone, in a batch, reordered, stored.",
)
