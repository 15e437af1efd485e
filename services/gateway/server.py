"""The gateway service put together: settings, mesh, servicer, host."""

from __future__ import annotations

from mmesh.api.gateway.v1.gateway_pb2_grpc import add_RetrievalServiceServicer_to_server
from mmesh.serving import logs
from mmesh.serving.host import Host, run_service
from services.gateway.config import GatewaySettings
from services.gateway.mesh import Mesh
from services.gateway.servicer import RetrievalServicer


async def serve(settings: GatewaySettings) -> None:
    """Serve until told to stop."""
    host = Host("gateway", settings)
    async with Mesh.of(settings) as mesh:
        servicer = RetrievalServicer(mesh, settings, host.draining)
        name = "mmesh.api.gateway.v1.RetrievalService"
        host.add(add_RetrievalServiceServicer_to_server, servicer, name)
        await host.start()
        await host.run()


def main() -> None:
    """Run the service with settings from flags and environment."""
    settings = GatewaySettings.from_command_line()
    logs.set_up("gateway", settings.log_level)
    run_service(serve(settings), settings)
