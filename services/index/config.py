"""Settings of the index service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mmesh.serving.settings import ServiceSettings


class IndexSettings(ServiceSettings):
    """What the index can be told, by flag or `MMESH_INDEX_*` variable."""

    model_config = SettingsConfigDict(env_prefix="MMESH_INDEX_")

    shard: int = Field(0, ge=0, description="Number of the shard that this process holds, from 0.")
    shard_count: int = Field(1, ge=1, le=256, description="Shards of the deployment.")
    data_dir: Path = Field(
        Path(".mmesh"), description="Folder of the log and the pictures; all shards share it."
    )
    log_url: str = Field(
        "", description="SQLAlchemy address of the log; empty: SQLite in the data folder."
    )
    poll_s: float = Field(
        0.05, gt=0, description="Seconds between looks at the log for writes of other processes."
    )
    seal_rows: int = Field(
        4096,
        gt=0,
        description="Recent rows that are searched plainly before they become a segment.",
    )
    search_threads: int = Field(2, gt=0, description="Searches at a time; one a core.")
    max_waiting_searches: int = Field(
        256, gt=0, description="Searches that may wait before QUEUE_FULL."
    )

    @property
    def url(self) -> str:
        """Address of the log."""
        return self.log_url or f"sqlite:///{self.data_dir / 'log.db'}"
