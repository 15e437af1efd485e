"""Dynamic batching by cost: queries before bulk work, and no timer while the device is busy.

`batcher` admits work (admission control), `backlog` keeps it sorted by cost, `lane` feeds one
device, `pace` learns what a pass costs and chooses batch sizes, `coalesce` computes the same input
once (single-flight). What may enter: scheduling. What may not: models and protobuf.
"""
