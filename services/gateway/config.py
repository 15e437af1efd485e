"""Settings of the gateway service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mmesh.search import MergePolicy
from mmesh.serving.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """What the gateway can be told, by flag or `MMESH_GATEWAY_*` variable."""

    model_config = SettingsConfigDict(env_prefix="MMESH_GATEWAY_")

    encoder: list[str] = Field(
        ["127.0.0.1:50551"],
        min_length=1,
        description="Addresses of encoders, of one model or of several: host:port, or "
        "dns:///name:port for all addresses of a name, which then have one model.",
    )
    index: list[str] = Field(
        ["127.0.0.1:50553"],
        description="Where the index processes are, of any shard and replica: host:port, "
        "dns:///name:port for all addresses of a name, or file:PATH of a JSON list of addresses.",
    )
    reranker: str = Field("", description="Address of the reranker; empty: nothing is reranked.")
    merge: MergePolicy = Field(
        MergePolicy.CALIBRATED, description="How lists of several modalities become one."
    )
    rerank_candidates: int = Field(
        20, ge=0, le=256, description="Hits that are judged when the request does not say."
    )
    deadline_s: float = Field(10.0, gt=0, description="Deadline of calls that come without one.")
    slow_search_ms: float = Field(
        1000.0,
        ge=0,
        description="Searches that take longer are logged with plan and stages, never with "
        "content; 0: none.",
    )
    max_running: int = Field(256, gt=0, description="Searches at a time before QUEUE_FULL.")
    max_searching: int = Field(
        32,
        gt=0,
        description="Searches at a time that are embedded and looked for; the others wait, and "
        "connections take turns. Large filters and pictures count as several.",
    )
    embedding_cache: int = Field(4096, ge=0, description="Query embeddings that are remembered.")
    ingest_window: int = Field(8, gt=0, description="Unacknowledged batches of one ingest.")
    ingest_patience_s: float = Field(
        60.0, gt=0, description="Seconds for which an ingest waits for a service that is away."
    )

    @property
    def most_content_bytes(self) -> int:
        """Bytes of contents in one message; the rest is for ids, attributes and the receipt."""
        return self.max_message_bytes // 16 * 15
