"""Kubernetes manifests: shard sets written, combinations rendered and checked.

May enter: what needs no cluster. `check` is the door for `tools.check`.
"""
