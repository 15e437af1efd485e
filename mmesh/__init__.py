"""mmesh: finds texts, pictures and illustrated texts with words, pictures or both.

Lazy imports (PEP 562): a name is loaded when it is first asked for, so that programs such as the
command line pay only for what they use.
"""

import os
import typing

from mmesh.lazy_imports import lazy_getattr as _lazy_getattr

# gRPC, which reads this when it is imported, would start its threads in forked processes anew.
# There they crash now and then, whatever such a process does.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if typing.TYPE_CHECKING:
    from mmesh.aio import AsyncClient
    from mmesh.candidates import Candidate, Embedded, Notice, Page, Rejected, WriteReport
    from mmesh.client import Client
    from mmesh.collections import (
        AttributeSummary,
        AttributeType,
        Collection,
        CollectionLimits,
        CollectionSettings,
        SettingsChange,
    )
    from mmesh.content import WITH_IMAGE, WITH_TEXT, Content, Image, Modality
    from mmesh.errors import MmeshError
    from mmesh.filter_language import parse_filter
    from mmesh.ingest import Progress
    from mmesh.mesh_status import MeshStatus, ServiceRole, ServiceState, ServiceStatus
    from mmesh.search import (
        Consistency,
        Coverage,
        Degradation,
        Explanation,
        Hit,
        MergePolicy,
        Receipt,
        Rerank,
        RerankOutcome,
        Search,
        SearchResult,
        Stage,
    )
    from mmesh.vectors import DataType

__all__ = [
    "WITH_IMAGE",
    "WITH_TEXT",
    "AsyncClient",
    "AttributeSummary",
    "AttributeType",
    "Candidate",
    "Client",
    "Collection",
    "CollectionLimits",
    "CollectionSettings",
    "Consistency",
    "Content",
    "Coverage",
    "DataType",
    "Degradation",
    "Embedded",
    "Explanation",
    "Hit",
    "Image",
    "MergePolicy",
    "MeshStatus",
    "MmeshError",
    "Modality",
    "Notice",
    "Page",
    "Progress",
    "Receipt",
    "Rejected",
    "Rerank",
    "RerankOutcome",
    "Search",
    "SearchResult",
    "ServiceRole",
    "ServiceState",
    "ServiceStatus",
    "SettingsChange",
    "Stage",
    "WriteReport",
    "parse_filter",
]


if not typing.TYPE_CHECKING:  # or type checkers would take any name for one of ours
    _MODULES = {
        "aio": "AsyncClient",
        "candidates": "Candidate Embedded Notice Page Rejected WriteReport",
        "client": "Client",
        "collections": "AttributeSummary AttributeType Collection CollectionLimits "
        "CollectionSettings SettingsChange",
        "content": "WITH_IMAGE WITH_TEXT Content Image Modality",
        "errors": "MmeshError",
        "filter_language": "parse_filter",
        "ingest": "Progress",
        "mesh_status": "MeshStatus ServiceRole ServiceState ServiceStatus",
        "search": "Consistency Coverage Degradation Explanation Hit MergePolicy Receipt Rerank "
        "RerankOutcome Search SearchResult Stage",
        "vectors": "DataType",
    }
    __getattr__ = _lazy_getattr(__name__, _MODULES)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
