"""Model families by name: the one place that knows which there are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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


async def open_judge(name: str, *, threads: int, template: str) -> JudgeModel:
    """Return the judge called `name`: `maxsim`, or `vllm:FOLDER` for an instruct MLLM.

    Raises:
        SystemExit: there is no such family, or a part of it is not installed.
    """
    if name == "maxsim":
        from mmesh.models.maxsim import load_maxsim

        return load_maxsim(threads=threads)
    if name.startswith("vllm:"):
        from mmesh.models.templates import load_template
        from mmesh.models.vllm_judge import open_vllm_judge

        return await open_vllm_judge(Path(name.removeprefix("vllm:")), load_template(template))
    raise SystemExit(f"no reranker is called {name!r}; known: maxsim, vllm:FOLDER")
