"""The reranker service put together: settings, judge, engine, servicer, host."""

from __future__ import annotations

from dataclasses import fields

from mmesh.api.reranker.v1.reranker_pb2_grpc import add_RerankerServiceServicer_to_server
from mmesh.models.judges.choice import JudgeChoice
from mmesh.models.judges.families import open_judge
from mmesh.models.protocol import JudgeModel
from mmesh.serving import logs
from mmesh.serving.host import Host, run_service
from services.reranker.canary import check_parity, parity_cache
from services.reranker.config import RerankerSettings
from services.reranker.engine import RerankerEngine
from services.reranker.servicer import RerankerServicer

NAME = "mmesh.api.reranker.v1.RerankerService"


async def serve(settings: RerankerSettings) -> None:
    """Serve until told to stop, or until the judge's engine dies: a supervisor restarts us then."""
    host = Host("reranker", settings)
    host.serve_metrics()
    model = await open_judge(_choice(settings))
    try:
        cache = parity_cache(settings, model)
        await check_parity(model, settings.canary, settings.tolerance, cache)
        await _serve(model, settings, host)
    finally:
        await model.close()


async def _serve(model: JudgeModel, settings: RerankerSettings, host: Host) -> None:
    engine = RerankerEngine(
        model,
        round_candidates=settings.round_candidates,
        running_calls=settings.running_calls,
        max_waiting=settings.max_waiting_calls,
        score_cache=settings.score_cache,
    )
    host.add(add_RerankerServiceServicer_to_server, RerankerServicer(engine), NAME)
    await host.start()
    await host.run_while(engine.is_healthy, "the judge's engine died")


def _choice(settings: RerankerSettings) -> JudgeChoice:
    chosen = {field.name: getattr(settings, field.name) for field in fields(JudgeChoice)}
    return JudgeChoice(**chosen | {"api_key": settings.api_key.get_secret_value()})


def main() -> None:
    """Run the service with settings from flags and environment."""
    settings = RerankerSettings.from_command_line()
    logs.set_up("reranker", settings.log_level)
    run_service(serve(settings), settings)
