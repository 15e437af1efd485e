"""Segments: immutable, searchable pieces of a shard, and the delta of rows not yet in one.

`segment` is one of them in memory, `files` its folder on disk (checksums, read with suspicion),
`structure` a FAISS index of any kind behind one call, `columns` attributes as typed columns for
filters, `delta` the exact part. What may enter: how rows are laid out and searched. What may not:
the log, the network, who builds or stores a segment. It uses no other room.
"""
