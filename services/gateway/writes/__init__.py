"""Writes: a batch is encoded, for its collection and for a mirror, and stored; streams of batches.

`draft` writes one batch (idempotent by request id); `ingest` takes a stream of them with
back-pressure and cumulative acknowledgements. What may enter: the order of encoding and storing.
What may not: protobuf and gRPC. It speaks to `interfaces`.
"""
