"""One search, from its plan to its answer: plan, embed, fan out, merge, rerank.

`pipeline` reads as the algorithm; `plan` (routing by modality), `merge` (rank fusion), `rerank` and
`calibration` are pure functions; `fanout` asks every shard (scatter-gather). What may enter: steps
of a search on plain Python. What may not: protobuf and gRPC. It speaks to `interfaces`.
"""
