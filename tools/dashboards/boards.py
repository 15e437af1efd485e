"""The seven dashboards: what is on each, and why."""

from __future__ import annotations

from tools.dashboards.plan import Board, Row, gauge, panel, quantiles, rate

_SEARCH = 'job="mmesh-gateway",method=~".*/Search(Batch)?"'
_BY_POD, _BY_REASON = "pod", "reason"

OVERVIEW = Board("overview", "mmesh / Overview", "Are users served? Start here.", (
    Row("Objectives: what is left undone, against its budget", (
        panel("Searches that fail", "percentunit", "Errors that are not the caller's. Objective: below 0.1 % in 30 days. Runbook: search-availability.",
              'mmesh:search_unserved:ratio_rate5m{namespace="$namespace"}  # 5 minutes', 'mmesh:search_unserved:ratio_rate1h{namespace="$namespace"}  # 1 hour', limit=0.001),
        panel("Searches slower than a second", "percentunit", "Objective: below 1 % in 30 days. Runbook: search-latency.",
              'mmesh:search_slow:ratio_rate5m{namespace="$namespace"}  # 5 minutes', 'mmesh:search_slow:ratio_rate1h{namespace="$namespace"}  # 1 hour', limit=0.01),
        panel("Searches that miss a shard", "percentunit", "Answers that leave out a part of the collection. Objective: below 0.1 % in 30 days. Runbook: coverage.",
              'mmesh:search_uncovered:ratio_rate5m{namespace="$namespace"}  # 5 minutes', 'mmesh:search_uncovered:ratio_rate1h{namespace="$namespace"}  # 1 hour', limit=0.001),
        panel("Replicas behind by a minute", "percentunit", "Share of replicas and collections older than a minute. Objective: below 1 % in 30 days. Runbook: freshness.",
              'mmesh:index_stale:ratio{namespace="$namespace"}  # now', 'mmesh:index_stale:ratio_avg1h{namespace="$namespace"}  # 1 hour', limit=0.01),
    )),
    Row("Traffic", (
        panel("Searches", "reqps", "Calls by status code.", 'mmesh:search:rate5m{namespace="$namespace"}  # {{code}}'),
        panel("Time of a search", "s", "At the gateway, all stages.", *quantiles("mmesh_rpc_seconds", where=_SEARCH), limit=1),
        panel("Errors of all services", "ops", "By reason (docs/reference/errors.md). Some, such as QUEUE_FULL, are protection at work.", rate("mmesh_errors_total", _BY_REASON)),
    )),
    Row("Quality of answers", (
        panel("What was skipped", "ops", "Degradations by reason: answers that are right as far as they go.", rate("mmesh_gateway_degradations_total", _BY_REASON)),
        panel("Modality share of hits", "percentunit", "A share that moves without a reason in the data means that a list buries another: see the merge policy.", 'mmesh:hits:share_rate5m{namespace="$namespace"}  # {{modality}}'),
        panel("Coverage", "percentunit", "Share of the shards that searches needed and that answered. Runbook: coverage.", 'sum(rate(mmesh_gateway_shards_answered_total{namespace="$namespace"}[$__rate_interval])) / sum(rate(mmesh_gateway_shards_asked_total{namespace="$namespace"}[$__rate_interval]))  # coverage'),
        panel("Replicas by shard", "short", "Processes that can be searched, of the set in use; the least that any gateway sees.", gauge("mmesh_gateway_replicas", "shard", "min")),
    )),
))  # fmt: skip

SEARCH_PATH = Board("search-path", "mmesh / Search path", "Where the time of a search goes, stage by stage.", (
    Row("Stages at the gateway", (
        panel("Mean time by stage", "s", "Stages follow one another: plan, encode, search, calibrate, merge, rerank, fetch, answer. Stacked they are the whole search.",
              'sum by (stage) (rate(mmesh_gateway_stage_seconds_sum{namespace="$namespace"}[$__rate_interval])) / on () group_left () sum (rate(mmesh_gateway_stage_seconds_count{namespace="$namespace",stage="answer"}[$__rate_interval]))  # {{stage}}'),
        panel("99th percentile by stage", "s", "The stage that grows is where to look.", quantiles("mmesh_gateway_stage_seconds", "stage")[1]),
        panel("Slow searches", "ops", "Longer than `slow_search_ms`: the gateway's log has plan and stages of each, as `slow search`.", rate("mmesh_gateway_slow_searches_total", _BY_POD)),
        panel("Running searches", "short", "By gateway. At `max_running` (256) more are refused.", gauge("mmesh_gateway_running_searches", _BY_POD)),
    )),
    Row("Behind the gateway", (
        panel("Encode", "s", "Time of an Encode call at the encoder, queue included.", *quantiles("mmesh_rpc_seconds", where='job="mmesh-encoder",method=~".*/Encode"')),
        panel("Search of a shard, by shard", "s", "Work of one call, without waiting.", *quantiles("mmesh_index_search_seconds", "shard, shard_count")),
        panel("Search of a shard, by replica", "s", "One line apart from the others is a slow node.", quantiles("mmesh_index_search_seconds", _BY_POD)[1]),
        panel("Rerank", "s", "Time of a Rerank call at the reranker, queue included.", *quantiles("mmesh_rpc_seconds", where='job="mmesh-reranker",method=~".*/Rerank"')),
    )),
    Row("Second chances", (
        panel("Other replica asked", "ops", "Because the first failed or had its part of the time (retries), or was slow (hedges). Hedges are capped at one search in twenty.",
              'sum(rate(mmesh_gateway_replica_retries_total{namespace="$namespace"}[$__rate_interval]))  # retries', 'sum(rate(mmesh_gateway_hedges_total{namespace="$namespace"}[$__rate_interval]))  # hedges'),
        panel("Query embeddings found", "ops", "Looked up in the gateway's cache, by outcome.", rate("mmesh_gateway_embedding_cache_total", "outcome")),
        panel("Lateness of event loops", "s", "99th percentile by job: all calls of a process wait as long. Above 50 ms is a defect. Runbook: loop-blocked.",
              quantiles("mmesh_loop_blocked_seconds", "job")[1], limit=0.25),
    )),
))  # fmt: skip

ENCODER = Board("encoder", "mmesh / Encoder", "Queue, batches and device of the encoder.", (
    Row("Demand", (
        panel("Waiting work", "short", "Cost in text tokens, by pod. What autoscalers follow, beside the share of time that devices work.", gauge("mmesh_encoder_waiting_cost", _BY_POD)),
        panel("Time in the queue", "s", "99th percentile by priority: interactive (queries) goes first, bulk (ingest) may wait.", quantiles("mmesh_encoder_queue_seconds", "priority")[1]),
        panel("Devices at work", "percentunit", "Seconds of forward passes by second. Near 1: the device is the bottleneck.", 'sum by (pod) (rate(mmesh_encoder_forward_seconds_sum{namespace="$namespace"}[$__rate_interval]))  # {{pod}}'),
    )),
    Row("Batches", (
        panel("Forward pass", "s", "99th percentile by group of inputs.", quantiles("mmesh_encoder_forward_seconds", "group", 'group!=""')[1]),
        panel("Inputs in a pass", "short", "Median and 99th percentile: one at a time means that calls come one at a time.", *quantiles("mmesh_encoder_batch_inputs")),
        panel("Padding", "percentunit", "Share of the device's work that is padding.", 'sum(rate(mmesh_encoder_padding_cost_total{namespace="$namespace"}[$__rate_interval])) / (sum(rate(mmesh_encoder_padding_cost_total{namespace="$namespace"}[$__rate_interval])) + sum(rate(mmesh_encoder_batch_cost_total{namespace="$namespace"}[$__rate_interval])))  # padding'),
    )),
    Row("Inputs", (
        panel("Tokens encoded", "short", "Cost by second, by group.", rate("mmesh_encoder_batch_cost_total", "group")),
        panel("Preparing an input", "s", "Decoding, resizing, tokenising; 99th percentile by group.", quantiles("mmesh_encoder_prepare_seconds", "group")[1]),
        panel("Answered by another call's work", "ops", "Same content in flight, computed once.", 'sum(rate(mmesh_encoder_coalesced_total{namespace="$namespace"}[$__rate_interval]))  # coalesced'),
        panel("Parity", "short", "Largest difference of a probe's vectors at the start. Runbook: parity.", gauge("mmesh_encoder_parity_max_abs_diff", _BY_POD), limit=0.02),
    )),
))  # fmt: skip

INDEX = Board("index", "mmesh / Index", "Freshness, recall, memory and upkeep of the shards.", (
    Row("Freshness", (
        panel("Staleness", "s", "Seconds since a replica had applied all of the log, by collection. Runbook: freshness.", gauge("mmesh_index_staleness_seconds", "collection"), limit=120),
        panel("Writes not applied", "short", "Lag behind the log, by pod.", gauge("mmesh_index_lag_writes", _BY_POD)),
        panel("Looks at the log that failed", "ops", "By pod. Runbook: log-unavailable.", rate("mmesh_index_tail_failures_total", _BY_POD)),
        panel("Collections that cannot be followed", "ops", "Tries that failed, by kind of error: MemoryFull, DataLoss. Runbook: memory.", rate("mmesh_index_collection_failures_total", "error")),
    )),
    Row("Searches", (
        panel("Work of a search", "s", "Without waiting.", *quantiles("mmesh_index_search_seconds")),
        panel("Waiting for a turn", "s", "99th percentile by pod.", quantiles("mmesh_index_queue_seconds", _BY_POD)[1]),
        panel("Searches that shared a call", "short", "More under load: that is how it keeps up.", *quantiles("mmesh_index_search_batch")),
    )),
    Row("Recall", (
        panel("Recall of live searches", "percentunit", "At 10, of those that were repeated exactly in six hours; the lowest modality of a collection. Runbook: search-recall.", 'min by (collection) (mmesh:index_recall_probe:ratio_rate6h{namespace="$namespace",k="10"})  # {{collection}}'),
        panel("Recall of segments", "percentunit", "At 10 against exact search, measured when a segment was built; the lowest. Runbook: segment-recall.", gauge("mmesh_index_segment_recall", "collection", "min")),
        panel("Probes", "ops", "Live searches that were chosen to be repeated exactly, by outcome: compared, or why not. Runbook: search-recall.", rate("mmesh_index_recall_probes_total", "outcome")),
        panel("CPU of probes", "percentunit", "Share of what the index's processes use.", 'sum(rate(mmesh_index_recall_probe_cpu_seconds_total{namespace="$namespace"}[$__rate_interval])) / sum(rate(process_cpu_seconds_total{namespace="$namespace",job="mmesh-index"}[$__rate_interval]))  # share', limit=0.01),
    )),
    Row("Upkeep", (
        panel("Segments", "short", "By collection, the most in a shard. They are merged when writes are quiet.", gauge("mmesh_index_segments", "collection")),
        panel("Builds", "s", "Time of a build. Runbook: builds.", *quantiles("mmesh_index_build_seconds")),
        panel("Snapshots", "s", "Time of storing one. Runbook: snapshots.", *quantiles("mmesh_index_snapshot_seconds")),
        panel("Age of snapshots", "s", "By collection, the oldest; 0 where nothing was written since. Runbook: snapshots.", gauge("mmesh_index_snapshot_age_seconds", "collection"), limit=21600),
    )),
    Row("Store", (
        panel("Pictures in the store", "bytes", "As the last sweep of any process left them: named by candidates, or waiting for their grace period. Runbook: store-not-swept.",
              'max by (state) (mmesh_index_store_bytes{namespace="$namespace"} and on (namespace, pod) topk(1, mmesh_index_store_sweep_time_seconds{namespace="$namespace"}))  # {{state}}'),
        panel("Pictures removed", "Bps", "Of no candidate any more.", 'sum(rate(mmesh_index_store_removed_bytes_total{namespace="$namespace"}[$__rate_interval]))  # removed'),
        panel("Damage met", "ops", "Stored data that fails its checksum, or is missing, by what it is. Runbook: corrupt-data.", rate("mmesh_index_damaged_total", "what")),
        panel("Failures of upkeep", "ops", "Snapshots by reason, builds, purges and sweeps of the store.", rate("mmesh_index_snapshot_failures_total", _BY_REASON), 'sum(rate(mmesh_index_build_failures_total{namespace="$namespace"}[$__rate_interval]))  # build', 'sum(rate(mmesh_index_purge_failures_total{namespace="$namespace"}[$__rate_interval]))  # purge', 'sum(rate(mmesh_index_gc_failures_total{namespace="$namespace"}[$__rate_interval]))  # sweep'),
    )),
))  # fmt: skip

RERANKER = Board("reranker", "mmesh / Reranker", "Queue, cost and outcome of judging.", (
    Row("Demand", (
        panel("Running and waiting calls", "short", "All pods. At most `running_calls` of a pod run; the others wait.", 'sum(mmesh_reranker_running_calls{namespace="$namespace"})  # running', 'sum(mmesh_reranker_waiting_calls{namespace="$namespace"})  # waiting'),
        panel("Time in the queue", "s", "A search's rerank budget runs meanwhile.", *quantiles("mmesh_reranker_queue_seconds")),
        panel("Time of judging", "s", "One call, all its candidates.", *quantiles("mmesh_reranker_judge_seconds")),
    )),
    Row("Outcome", (
        panel("Candidates judged", "ops", "By pod.", rate("mmesh_reranker_judged_total", _BY_POD)),
        panel("Candidates not judged", "ops", "By reason. Runbook: rerank-incomplete.", rate("mmesh_reranker_unjudged_total", _BY_REASON)),
        panel("Searches left in first-stage order", "percentunit", "Of those that want reranking: because the reranker was away or had no time. Runbook: reranker-away.", 'mmesh:search_rerank_skipped:ratio_rate5m{namespace="$namespace"}  # share', limit=0.05),
    )),
    Row("Numbers", (
        panel("Scores remembered", "ops", "Looked up, by outcome.", rate("mmesh_reranker_score_cache_total", "outcome")),
        panel("Parity", "short", "Largest difference of a probe's scores at the start. Runbook: parity.", gauge("mmesh_reranker_parity_max_abs_diff", _BY_POD), limit=0.02),
    )),
))  # fmt: skip

INGEST = Board("ingest", "mmesh / Ingest and migration", "Writes, from the stream to the log.", (
    Row("Streams", (
        panel("Candidates stored", "ops", "By gateway.", rate("mmesh_gateway_ingested_total", _BY_POD)),
        panel("Candidates refused", "ops", "By reason. Runbook: ingest-refuses.", rate("mmesh_gateway_rejected_total", _BY_REASON)),
        panel("Refused by the new model", "ops", "During a migration: candidates that its mirror will miss, by reason.", rate("mmesh_gateway_mirror_refused_total", _BY_REASON)),
    )),
    Row("Log", (
        panel("Durable write", "s", "Waiting for the group included.", *quantiles("mmesh_index_write_seconds")),
        panel("Writes in a transaction", "short", "They share a commit.", *quantiles("mmesh_index_group_writes")),
        panel("Candidates written or deleted", "ops", "By pod.", rate("mmesh_index_written_total", _BY_POD)),
    )),
    Row("Shard sets", (
        panel("Whole sets", "short", "Two while one replaces the other.", gauge("mmesh_gateway_shard_sets", _BY_POD)),
        panel("Switches", "short", "Times that gateways moved to another set, in an hour. Runbook: shard-set-flaps.", 'sum by (pod) (increase(mmesh_gateway_shard_set_switches_total{namespace="$namespace"}[1h]))  # {{pod}}'),
        panel("Candidates", "short", "That shards can find, by collection; replicas counted once, and so are shard sets of which one replaces the other.",
              'max by (collection) (sum by (collection, shard_count) (max by (collection, modality, shard, shard_count) (mmesh_index_candidates{namespace="$namespace"})))  # {{collection}}'),
    )),
))  # fmt: skip

CAPACITY = Board("capacity", "mmesh / Capacity", "What is full first, and what autoscalers see.", (
    Row("Demand (what autoscalers follow)", (
        panel("Gateway", "short", "Running searches of all pods; 24 for each pod.", 'mmesh:gateway_searches:demand{namespace="$namespace"}  # searches'),
        panel("Encoder", "short", "Devices' worth of work; 0.7 for each pod.", 'mmesh:encoder_busy:demand{namespace="$namespace"}  # busy'),
        panel("Reranker", "short", "Calls that are judged or wait; 3 for each pod.", 'mmesh:reranker_calls:demand{namespace="$namespace"}  # calls'),
        panel("Index", "short", "Searches that run or wait, by shard; 1 for each pod.", 'mmesh:index_searches:demand{namespace="$namespace"}  # {{shard}} of {{shard_count}}'),
    )),
    Row("Memory", (
        panel("Index, by part", "bytes", "Bytes of vectors, ids, attributes and so on, all pods.", gauge("mmesh_index_memory_bytes", "part", "sum", 'part!~"process|limit"')),
        panel("Index, of the limit", "percentunit", "By pod. Runbook: memory.", 'max by (pod) (mmesh_index_memory_bytes{namespace="$namespace",part="process"} / ignoring (part) mmesh_index_memory_bytes{namespace="$namespace",part="limit"})  # {{pod}}', limit=0.9),
        panel("Collections refused", "short", "By reason: they would not fit (MEMORY_FULL), or are damaged. Their searches miss a shard. Runbook: memory.", 'max by (pod, reason) (mmesh_index_refused_collections{namespace="$namespace"})  # {{pod}} {{reason}}', limit=1),
        panel("Processes", "bytes", "Resident memory of gateway, encoder and reranker.", 'max by (pod) (process_resident_memory_bytes{namespace="$namespace",job=~"mmesh-.+"})  # {{pod}}'),
    )),
    Row("Disks", (
        panel("Disks in use", "percentunit", "Of the log, the store and the scratch folder, where they are on disks of a pod. Runbook: storage-full.", '1 - min by (pod, folder) (mmesh_index_disk_free_bytes{namespace="$namespace"} / mmesh_index_disk_size_bytes{namespace="$namespace"})  # {{pod}} {{folder}}', limit=0.9),
        panel("Releases", "short", "Processes by version, Python and commit; two versions while an upgrade runs.", 'count by (version, python, commit) (mmesh_build_info{namespace="$namespace"})  # {{version}} {{commit}} on Python {{python}}'),
    )),
    Row("Processes", (
        panel("Processor", "short", "Cores by pod.", rate("process_cpu_seconds_total", _BY_POD, 'job=~"mmesh-.+"')),
        panel("Tasks that cannot go on", "short", "Above 0 the process says NOT_SERVING. Runbook: task-unwell.", gauge("mmesh_task_unwell", "task", "sum"), limit=1),
        panel("Tasks restarted", "ops", "By task.", rate("mmesh_task_failures_total", "task")),
        panel("Starts", "short", "Of each pod in an hour. Runbook: restarts.", 'changes(process_start_time_seconds{namespace="$namespace",job=~"mmesh-.+"}[1h])  # {{pod}}'),
    )),
))  # fmt: skip

ALL = [OVERVIEW, SEARCH_PATH, ENCODER, INDEX, RERANKER, INGEST, CAPACITY]
