"""The store: blobs by content hash and snapshots, in a folder or in S3.

`objects` is the object store behind one protocol, `blobs` are pictures by SHA-256, `garbage`
removes those that nothing names, `snapshot` stores and loads a view's segments, `manifest` lists
them with checksums. What may enter: bytes and where they are kept. What may not: SQL, FAISS,
searches. It uses no other room.
"""
