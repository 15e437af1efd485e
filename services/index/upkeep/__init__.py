"""Upkeep: what goes on in the background: compaction, snapshots, purges, gauges, recall probes.

`maintainer` puts it together: `builds`, `snapshots`, `purges`, `gauges` and `recall_probe` (an
`exact_pass` when `cpu_budget` allows one), each a supervised task; `restorer` makes views of
snapshots, and `scratch` is the folder for what is being built. What may enter: long-lived work on
views that no call waits for. What may not: anything that a search needs. It uses all other rooms.
"""
