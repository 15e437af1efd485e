"""mteb's tasks on a live mesh: `mteb.evaluate(MeshSearch("localhost:50550"), tasks)`.

`MeshSearch` is all of a mesh, `MeshEncoder` an encoder alone. What may enter: what mteb's protocols
(`mteb.models.models_protocols`) ask for. Nothing else of mmesh imports mteb, which brings torch.

Raises:
    ImportError: mteb is not installed.
"""

from importlib.util import find_spec

if find_spec("mteb") is None:
    raise ImportError("mteb is not installed: pip install 'mmesh[mteb]'", name="mteb")

from mmesh.models.compat import declare_torchvision_operators

declare_torchvision_operators()  # mteb imports transformers while it measures

from mmesh.evaluation.mteb.encoder import MeshEncoder  # noqa: E402
from mmesh.evaluation.mteb.search import MeshSearch  # noqa: E402

__all__ = ["MeshEncoder", "MeshSearch"]
