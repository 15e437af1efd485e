"""The reranker service put together: settings, judge, engine, servicer, host."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from mmesh.api.reranker.v1.reranker_pb2_grpc import add_RerankerServiceServicer_to_server
from mmesh.models.families import open_judge, open_mllm_judge
from mmesh.models.protocol import JudgeModel
from mmesh.serving import logs
from mmesh.serving.host import Host, run_service
from services.reranker.config import RerankerSettings
from services.reranker.engine import RerankerEngine
from services.reranker.servicer import RerankerServicer

logger = logging.getLogger(__name__)

NAME = "mmesh.api.reranker.v1.RerankerService"
LOOK_S = 0.5


async def serve(settings: RerankerSettings) -> None:
    """Serve until told to stop, or until the judge's engine dies: a supervisor restarts us then."""
    host = Host("reranker", settings)
    model = await _open_model(settings)
    engine = RerankerEngine(
        model,
        round_candidates=settings.round_candidates,
        running_calls=settings.running_calls,
        max_waiting=settings.max_waiting_calls,
    )
    host.add(add_RerankerServiceServicer_to_server, RerankerServicer(engine), NAME)
    await host.start()
    watch = asyncio.create_task(_stop_when_dead(engine, host))
    try:
        await host.run()
        dead = not engine.is_healthy()
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await model.close()
    if dead:
        raise SystemExit("the judge's engine died")


async def _open_model(settings: RerankerSettings) -> JudgeModel:
    if not settings.model.startswith("vllm:"):
        return open_judge(settings.model, threads=settings.threads)
    return await open_mllm_judge(
        Path(settings.model.removeprefix("vllm:")),
        settings.template,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        kv_cache_bytes=int(settings.kv_cache_gib * 2**30),
        images_per_prompt=settings.images_per_prompt,
        enforce_eager=settings.enforce_eager,
    )


async def _stop_when_dead(engine: RerankerEngine, host: Host) -> None:
    while engine.is_healthy():  # noqa: ASYNC110  # an engine in other processes sets no event
        await asyncio.sleep(LOOK_S)
    logger.error("the judge's engine died")
    await host.set_serving(False)
    host.stop.set()


def main() -> None:
    """Run the service with settings from flags and environment."""
    settings = RerankerSettings.from_command_line()
    logs.set_up("reranker", settings.log_level)
    run_service(serve(settings))
