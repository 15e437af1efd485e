"""Kubernetes manifests that commands write: kustomizations on top of the project's folder `k8s`.

`shard_set` writes the shards of an overlay (docs/adr/0022), `overlay` a whole one from a capacity
plan, `scaling` changes the number of shards of a mesh that runs. What may enter: files of an
overlay, and calls of kubectl. What may not: what a local mesh does; YAML is written, never parsed.
"""
