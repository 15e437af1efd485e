"""The index over gRPC: which process holds which shard, and how one of them is asked.

`topology` (service discovery) and `replica` (health tracking, circuit breaker) know the processes;
`shard_search` asks with `hedging` (hedged requests) over a `search_channel`; `index_backend` joins
them behind `interfaces.Index`. What may enter: how index processes are found and called. What may
not: what a search is for. It uses `rpc`, `circuit_breaker` and `interfaces`.
"""
