"""mmesh: finds texts, pictures and illustrated texts with words, pictures or both."""

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
