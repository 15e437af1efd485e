"""The encoder service put together: settings, model, engine, servicer, host."""

from __future__ import annotations

from mmesh.api.encoder.v1.encoder_pb2_grpc import add_EncoderServiceServicer_to_server
from mmesh.models.encoders.families import open_encoder
from mmesh.serving import logs
from mmesh.serving.host import Host, run_service
from services.encoder.canary import check_parity, parity_cache
from services.encoder.config import EncoderSettings
from services.encoder.engine import EncoderEngine
from services.encoder.servicer import EncoderServicer
from services.encoder.tuning import batch_limits


async def serve(settings: EncoderSettings) -> None:
    """Serve until told to stop, or until a device is lost: a supervisor restarts us then."""
    host = Host("encoder", settings)
    host.serve_metrics()
    models = [open_encoder(choice) for choice in settings.choices]
    cache = parity_cache(settings, models)
    await check_parity(models, settings.canary, settings.tolerance, cache)
    async with EncoderEngine(
        models,
        await batch_limits(settings, models),
        prepare_threads=settings.prepare_thread_count,
        max_input_cost=settings.max_input_cost,
    ) as engine:
        host.add(
            add_EncoderServiceServicer_to_server,
            EncoderServicer(engine),
            "mmesh.api.encoder.v1.EncoderService",
        )
        await host.start()
        await host.run_while(engine.is_healthy, "the model's passes all fail")


def main() -> None:
    """Run the service with settings from flags and environment."""
    settings = EncoderSettings.from_command_line()
    logs.set_up("encoder", settings.log_level)
    run_service(serve(settings), settings)
