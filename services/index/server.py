"""The index service put together: settings, engine, servicers, host."""

from __future__ import annotations

from mmesh.api.index.v1.collection_service_pb2_grpc import add_CollectionServiceServicer_to_server
from mmesh.api.index.v1.index_pb2_grpc import add_IndexServiceServicer_to_server
from mmesh.serving import logs
from mmesh.serving.host import Host, run_service
from services.index.config import IndexSettings
from services.index.engine import IndexEngine
from services.index.servicer import CollectionServicer, IndexServicer


async def serve(settings: IndexSettings) -> None:
    """Serve until told to stop."""
    host = Host("index", settings)
    engine = IndexEngine(settings)
    host.add(
        add_CollectionServiceServicer_to_server,
        CollectionServicer(engine),
        "mmesh.api.index.v1.CollectionService",
    )
    host.add(
        add_IndexServiceServicer_to_server,
        IndexServicer(engine, settings, host.stopping),
        "mmesh.api.index.v1.IndexService",
    )
    await host.start()
    async with engine:
        await host.run()


def main() -> None:
    """Run the service with settings from flags and environment."""
    settings = IndexSettings.from_command_line()
    logs.set_up(f"index-{settings.shard}", settings.log_level)
    run_service(serve(settings), settings)
