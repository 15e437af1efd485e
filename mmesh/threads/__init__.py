"""Threads of the blocking client: what may block there, beside its event loop.

What may enter: what owns a thread of a client. What may not: protobuf, calls of the API.
"""
