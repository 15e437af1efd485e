"""Upkeep: what goes on in the background: sealed deltas, compaction, snapshots, purges.

`maintainer` has the three loops, `scratch` the folder for what is being built. What may enter:
long-lived work on views that no call waits for. What may not: anything that a search needs. It
uses all other rooms.
"""
