"""Building segments: when to merge (compaction tiers), with which structure, and in which process.

`tiers` decides what is merged (pure), `tuning` which FAISS structure and effort reach the wanted
recall, `trial` builds a few rows with the structure that somebody asks for, `worker` is the process
that builds, `builder` starts it and reads its answers. What may enter: training, measuring,
merging. What may not: the log and what is served. It uses `segments`.
"""
