"""mmesh: finds texts, pictures and illustrated texts with words, pictures or both.

Lazy imports (PEP 562): a name is loaded when it is first asked for, so that programs such as the
command line pay only for what they use.
"""

import typing

if typing.TYPE_CHECKING:
    from mmesh.aio import AsyncClient
    from mmesh.candidates import Candidate, Embedded, IngestReport, Page, Rejected
    from mmesh.client import Client
    from mmesh.collections import Collection, CollectionLimits, CollectionSettings, SettingsChange
    from mmesh.content import Content, Image, Modality
    from mmesh.errors import MmeshError
    from mmesh.filter_language import parse_filter
    from mmesh.ingest import Progress
    from mmesh.mesh_status import MeshStatus, ServiceRole, ServiceState, ServiceStatus
    from mmesh.search import (
        Consistency,
        Coverage,
        Degradation,
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
    "AsyncClient",
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
    "Hit",
    "Image",
    "IngestReport",
    "MergePolicy",
    "MeshStatus",
    "MmeshError",
    "Modality",
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
    "parse_filter",
]

if not typing.TYPE_CHECKING:  # or type checkers would take any name for one of ours
    _MODULES = {
        "aio": "AsyncClient",
        "candidates": "Candidate Embedded IngestReport Page Rejected",
        "client": "Client",
        "collections": "Collection CollectionLimits CollectionSettings SettingsChange",
        "content": "Content Image Modality",
        "errors": "MmeshError",
        "filter_language": "parse_filter",
        "ingest": "Progress",
        "mesh_status": "MeshStatus ServiceRole ServiceState ServiceStatus",
        "search": "Consistency Coverage Degradation Hit MergePolicy Receipt Rerank RerankOutcome "
        "Search SearchResult Stage",
        "vectors": "DataType",
    }
    _HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

    def __getattr__(name: str) -> object:
        """Load a public name, or one of the modules that hold them."""
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"mmesh.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'mmesh' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"mmesh.{_HOMES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
