"""Data sets: what to search with, what can be found, and what should be.

A data set is one class behind the protocol of `dataset.py`; `opening.py` tells which one a folder
holds. Readers stream: only what they need to remember of a pool is kept, and pictures are paths.

What may enter: files and their formats. Nothing here knows a mesh or computes a metric.
"""
