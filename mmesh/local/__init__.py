"""A mesh on this machine.

`plan` says which processes, `mesh` starts and watches them (process supervision), `scaling` changes
their number while they serve, `observers` has Prometheus look at them. What may enter: processes of
one machine. What may not: what the services do. The CLI, tests and benchmarks use it.
"""

from mmesh.local.mesh import LocalMesh
from mmesh.local.plan import LocalSettings, MeshFailed

__all__ = ["LocalMesh", "LocalSettings", "MeshFailed"]
