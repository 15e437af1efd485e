"""Model families by name: the one place that knows which there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mmesh.models.protocol import EncoderModel, JudgeModel


def open_encoder(
    name: str, *, backend: Literal["onnxruntime", "openvino"], threads: int
) -> EncoderModel:
    """Return the encoder called `name`.

    Raises:
        SystemExit: there is no such family, or a part of it is not installed.
    """
    if name != "lite":
        raise SystemExit(f"no encoder is called {name!r}; known: lite")
    from mmesh.models.lite.model import load_lite

    return load_lite(backend=backend, threads=threads)


def open_judge(name: str, *, threads: int) -> JudgeModel:
    """Return the judge called `name`.

    Raises:
        SystemExit: there is no such judge.
    """
    if name != "maxsim":
        raise SystemExit(f"no reranker is called {name!r}; known: maxsim, vllm:FOLDER")
    from mmesh.models.maxsim import load_maxsim

    return load_maxsim(threads=threads)


async def open_mllm_judge(folder: Path, template: str, **settings: Any) -> JudgeModel:
    """Return a judge that asks the MLLM in `folder`; settings are those of `VllmSettings`.

    Raises:
        FailedPrecondition: vLLM is not installed, or refuses the model.
    """
    from mmesh.models.templates import load_template
    from mmesh.models.vllm_judge import VllmSettings, open_vllm_judge

    return await open_vllm_judge(folder, load_template(template), VllmSettings(**settings))
