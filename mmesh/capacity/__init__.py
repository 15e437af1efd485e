"""Capacity planning: from what a mesh shall do to processes, memory, disks and GPUs.

`wishes` says what is asked for, `index_plan` sizes the shards, `planning` the rest, `coefficients`
has what the benchmarks measured, `notes` what goes beyond that. What may enter: arithmetic, and
figures with their source. What may not: calls of a mesh, files but the coefficients.
"""

from mmesh.capacity.planning import Plan, plan
from mmesh.capacity.wishes import Gpu, ImpossibleWish, VectorKind, Wish

__all__ = ["Gpu", "ImpossibleWish", "Plan", "VectorKind", "Wish", "plan"]
