"""Settings of the index service."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from mmesh.serving.settings import ServiceSettings


class IndexSettings(ServiceSettings):
    """What the index can be told, by flag or `MMESH_INDEX_*` variable."""

    model_config = SettingsConfigDict(env_prefix="MMESH_INDEX_")

    max_message_bytes: int = Field(
        96 << 20,
        gt=0,
        description="Bytes of one message; larger ones are RESOURCE_EXHAUSTED. Above what "
        "gateways take, which add the vectors of a batch, those for a mirror too.",
    )
    shard: int = Field(0, ge=0, description="Number of the shard that this process holds, from 0.")
    shard_count: int = Field(1, ge=1, le=256, description="Shards of the deployment.")
    data_dir: Path = Field(
        Path(".mmesh"), description="Folder of the log and the blobs, unless these are elsewhere."
    )
    log_url: SecretStr = Field(
        SecretStr(""),
        description="SQLAlchemy address of the log, such as postgresql+psycopg://user@host/mmesh; "
        "empty: SQLite in the data folder.",
    )
    blobs_url: str = Field(
        "",
        description="Where pictures and snapshots are: a folder, or s3://bucket/prefix; "
        "empty: the data folder.",
    )
    scratch_dir: Path | None = Field(
        None, description="Folder for segments, which are disposable; by default the system's."
    )
    scratch_limit_bytes: int = Field(
        0,
        ge=0,
        description="Bytes that the scratch folder may hold, where a cluster ends what holds more; "
        "metrics then tell how much of them is free. 0: its disk is the limit.",
    )
    poll_s: float = Field(
        0.05, gt=0, description="Seconds between looks at the log for writes of other processes."
    )
    seal_rows: int = Field(
        4096,
        gt=0,
        description="Recent rows that are searched plainly before they become a segment.",
    )
    quiet_s: float = Field(
        10.0, ge=0, description="Seconds without a write after which segments are merged into one."
    )
    builder_threads: int = Field(
        1, gt=0, description="Threads of the process that builds segments."
    )
    builder_nice: int = Field(19, ge=0, le=19, description="Niceness of that process.")
    device: Literal["cpu", "cuda", "cuda-build"] = Field(
        "cpu",
        description="Where segments are searched and built; cuda-build: built on the GPU, searched "
        "on the CPU. CUDA needs faiss-gpu.",
    )
    search_threads: int = Field(2, gt=0, description="Searches at a time; one a core.")
    inline_s: float = Field(
        0.001,
        ge=0,
        description="Searches that are expected to take less run on the event loop at once.",
    )
    max_waiting_searches: int = Field(
        256, gt=0, description="Searches that may wait before QUEUE_FULL."
    )
    probe_share: float = Field(
        0.002,
        ge=0,
        le=1,
        description="Share of searches that are repeated exactly, to measure what searches miss, "
        "with at most 1 % of the CPU that the process uses; 0: none.",
    )
    max_waiting_writes: int = Field(
        256, gt=0, description="Writes that may wait before QUEUE_FULL."
    )
    memory_limit_bytes: int = Field(
        0,
        ge=0,
        description="Bytes this process may use; collections that would not fit are not loaded. "
        "0: 90 % of what the container, or the machine, has.",
    )
    snapshot_s: float = Field(
        600.0, ge=0, description="Seconds between snapshots of a collection that changes; 0: none."
    )
    snapshots_kept: int = Field(3, gt=0, description="Snapshots that are kept of each shard.")
    tombstone_s: float = Field(
        7 * 86400.0,
        gt=0,
        description="Seconds for which the log remembers deletions; a replica that was away longer "
        "loads anew.",
    )
    purge_s: float = Field(
        3600.0, gt=0, description="Seconds between removals of what the log need not remember."
    )
    gc_s: float = Field(
        6 * 3600.0,
        ge=0,
        description="Seconds between removals of pictures that no candidate has any more, by one "
        "of the processes that share a store; 0: never.",
    )
    gc_grace_s: float = Field(
        86400.0,
        ge=7200,
        description="Seconds for which these are kept: a log that is put back to an earlier state "
        "finds its pictures for so long.",
    )

    metrics_collections: int = Field(
        100,
        ge=0,
        le=100,
        description="Collections that metrics name, the first ones; the others are measured "
        "together, as `(others)`.",
    )

    @property
    def url(self) -> str:
        """Address of the log."""
        return self.log_url.get_secret_value() or f"sqlite:///{self.data_dir / 'log.db'}"

    @property
    def log_file(self) -> Path | None:
        """The file that the log is in, if it is in SQLite."""
        _, is_sqlite, path = self.url.partition("sqlite:///")
        return Path(path) if is_sqlite else None

    @property
    def blobs(self) -> str:
        """Where pictures and snapshots are."""
        return self.blobs_url or str(self.data_dir)

    @property
    def folders(self) -> dict[str, Path]:
        """What is on disks of this machine, by what it is for."""
        found = {"scratch": self.scratch_dir or Path(tempfile.gettempdir())}
        if self.log_file is not None:
            found["log"] = self.log_file.parent
        if "://" not in self.blobs:
            found["store"] = Path(self.blobs)
        return found

    @property
    def search_device(self) -> str:
        """Where segments are searched: `cpu` or `cuda`."""
        return "cuda" if self.device == "cuda" else "cpu"
