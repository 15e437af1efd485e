"""Judge families by name: the one place that knows which there are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from mmesh.errors import FailedPrecondition, InvalidField
from mmesh.models import hub
from mmesh.models.judges.choice import JudgeChoice
from mmesh.models.protocol import JudgeModel

if TYPE_CHECKING:
    from mmesh.models.judges.vllm_judge import JudgeFamily

IN_PROCESS = "vllm:"
REMOTE = ("vllm+http://", "vllm+https://")
FAMILIES = ("zero-shot", "qwen3-vl-reranker", "jina-reranker-m0")
DEFAULT_TEMPLATE = "mbeir.v1"


async def open_judge(choice: JudgeChoice) -> JudgeModel:
    """Return the judge that `choice` names, ready to score.

    Raises:
        SystemExit: there is no such judge.
        InvalidField: the family has no such route or template.
        FailedPrecondition: vLLM is not installed, or refuses the model.
        Unavailable: the engine does not start, or the server does not answer.
    """
    if choice.model == "maxsim":
        from mmesh.models.judges.maxsim import load_maxsim

        return load_maxsim(threads=choice.threads, cache_mib=choice.token_cache_mib)
    if choice.model.startswith(REMOTE):
        return await _open_remote(choice)
    if choice.model.startswith(IN_PROCESS):
        return await _open_vllm(choice)
    known = "maxsim, vllm:FOLDER, vllm:hf:ORG/NAME[@REVISION], vllm+http://HOST:PORT"
    raise SystemExit(f"no reranker is called {choice.model!r}; known: {known}")


async def _open_remote(choice: JudgeChoice) -> JudgeModel:
    try:
        from mmesh.models.judges.remote_judge import open_remote_judge

        return await open_remote_judge(choice, load_family)
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"a judge on a vLLM server needs {error.name}; run `make setup-models`"
        ) from error


def family_name(model: str, folder: Path) -> str:
    """Return which of `FAMILIES` the model in `folder` belongs to.

    `model` is how the operator named it: a folder, or `hf:ORG/NAME[@REVISION]`. A published
    Qwen3-VL-Reranker has the config of the chat model that it was made from: it is known by its
    name, or by the score head that it declares for sentence-transformers.
    """
    from mmesh.models.judges import jina_reranker

    config = hub.read_config(folder)
    if jina_reranker.ARCHITECTURE in config.get("architectures", ()):
        return jina_reranker.FAMILY
    if config.get("model_type") != "qwen3_vl":
        return "zero-shot"
    modules = folder / "modules.json"
    has_score_head = modules.is_file() and "LogitScore" in modules.read_text()
    named_so = "reranker" in hub.display_name(model, folder).lower()
    return "qwen3-vl-reranker" if has_score_head or named_so else "zero-shot"


async def _open_vllm(choice: JudgeChoice) -> JudgeModel:
    from mmesh.models.judges import vllm_engine
    from mmesh.models.judges.vllm_judge import open_vllm_judge

    vllm_engine.check_installation()
    model = choice.model.removeprefix(IN_PROCESS)
    folder = await asyncio.to_thread(hub.local_folder, model)
    settings = vllm_engine.VllmSettings(
        dtype=choice.dtype,
        max_model_len=choice.max_model_len,
        kv_cache_bytes=int(choice.kv_cache_gib * 2**30),
        images_per_prompt=choice.images_per_prompt,
        enforce_eager=choice.enforce_eager,
    )
    vllm_engine.set_environment(settings)
    family = await asyncio.to_thread(load_family, folder, choice)
    return await open_vllm_judge(folder, family, settings, hub.display_name(model, folder))


def load_family(folder: Path, choice: JudgeChoice) -> JudgeFamily:
    """Return how the model in `folder` is asked, as `choice` says.

    Raises:
        InvalidField: there is no such family, or it has no such route or template.
        FailedPrecondition: the model does not suit the family.
    """
    named = choice.tokenizer or choice.model.removeprefix(IN_PROCESS)
    name = choice.family if choice.family != "auto" else family_name(named, folder)
    if name == "zero-shot":
        _check(choice, "route", ("auto", "logprob"))
        from mmesh.models.judges.templates import load_template_set
        from mmesh.models.judges.zero_shot import load_zero_shot

        template = DEFAULT_TEMPLATE if choice.template == "auto" else choice.template
        return load_zero_shot(folder, load_template_set(template))
    _check(choice, "template", ("auto",))
    if name == "qwen3-vl-reranker":
        from mmesh.models.judges.qwen3_vl_reranker import load_qwen3_vl_reranker

        return load_qwen3_vl_reranker(folder, choice.route)
    if name == "jina-reranker-m0":
        _check(choice, "route", ("auto", "classifier"))
        from mmesh.models.judges.jina_reranker import load_jina_reranker

        return load_jina_reranker(folder)
    raise InvalidField("family", f"{name!r} is unknown; known: auto, {', '.join(FAMILIES)}")


def _check(choice: JudgeChoice, field: str, known: tuple[str, ...]) -> None:
    value = getattr(choice, field)
    if value not in known:
        raise InvalidField(field, f"{value!r} does not suit this family; use {' or '.join(known)}")
