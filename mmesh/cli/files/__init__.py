"""Files that commands read and write: sources of an ingest, Parquet, archives, journals.

What may enter: formats. What may not: the network and printing, but for `load`, which puts what the
sources hold into a collection.
"""
