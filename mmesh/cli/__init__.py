"""The command line: `mmesh up`, `ingest`, `search`, `collection`, `delete`, `status`."""

from mmesh.cli.main import main

__all__ = ["main"]
