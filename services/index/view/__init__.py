"""Views: what this process has in memory of each collection, and how it is kept up and searched.

`view` is a collection at one sequence number: segments, delta and tombstones behind a seqlock;
`follower` keeps it at the head of the log, by way of `loader` and `waiters`; `searcher` runs
searches on it (micro-batching), those of read-only collections by way of `reproducible`, and
`watch` keeps what some of them saw; `memory` and `recent_queries` say what it takes and what is
asked. What may enter: disposable state. What may not: durable writes. It uses `log` and `segments`.
"""
