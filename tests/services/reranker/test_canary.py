"""Judges that must not serve: their scores depend on company, or are not those that are stored."""

from math import inf, nan

import numpy as np
import pytest

from mmesh.errors import FailedPrecondition, InvalidImage
from mmesh.models.judges.maxsim import load_maxsim
from mmesh.models.parity import (
    Reference,
    Row,
    ask_alone,
    judge_groups,
    load_reference,
    measure,
    save_reference,
)
from services.reranker.canary import check_parity, parity_cache
from services.reranker.config import RerankerSettings


class Judge:
    """Scores by length, and as it is told."""

    def __init__(self, company=0.0, place=0.0, bias=0.0, reads_images=True):
        self.company, self.place, self.bias = company, place, bias
        self.reads_images = reads_images

    async def score(self, query, instruction, candidates):
        contents = [query, *candidates]
        if not self.reads_images and any(content.images for content in contents):
            raise InvalidImage("candidates[0]", "is not read")
        shift = self.bias + self.company * (len(candidates) - 1)
        return [
            len(content.text) / 1000 + shift + self.place * number
            for number, content in enumerate(candidates)
        ]


class Silent:
    """Must not be asked."""

    async def score(self, query, instruction, candidates):
        raise AssertionError("asked")


@pytest.mark.parametrize("fault", ["company", "place"])
async def test_scores_that_depend_on_other_candidates_are_refused(fault):
    with pytest.raises(FailedPrecondition, match="differ by"):
        await check_parity(Judge(**{fault: 0.01}), None, 1e-3)


async def test_stored_scores_are_those_that_the_judge_must_give(tmp_path):
    file = tmp_path / "canary.npz"
    save_reference(file, Reference("a test", await ask_alone(judge_groups(Judge().score))))
    await check_parity(Judge(), file, 1e-3)
    with pytest.raises(FailedPrecondition, match=r"differ by 0\.01"):
        await check_parity(Judge(bias=0.01), file, 1e-3)
    await check_parity(Judge(bias=0.01), file, 2e-2)


async def test_a_judge_of_texts_is_asked_about_texts_only(tmp_path):
    rows = await measure(judge_groups(Judge(reads_images=False).score))
    assert [row.name for row in rows] == ["words → text", "words → long text"]


async def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(FailedPrecondition, match="differ by inf"):
        await check_parity(Judge(bias=float("nan")), None, 1e-3)


@pytest.mark.parametrize("differences", [(nan, 0, 0), (0, nan, 0), (0, 0, nan)])
def test_a_difference_that_is_not_finite_is_the_largest(differences):
    assert Row("probe", np.zeros(1), *differences).largest == inf


async def test_a_file_of_other_probes_or_of_none_is_said(tmp_path):
    file, broken = tmp_path / "other.npz", tmp_path / "broken.npz"
    np.savez(file, source=np.array("elsewhere"), other=np.zeros(1))
    with pytest.raises(FailedPrecondition, match="no answer of 1 numbers"):
        await check_parity(Judge(), file, 1e-3)
    broken.write_bytes(b"no zip")
    with pytest.raises(FailedPrecondition, match="no stored answers"):
        load_reference(broken)


async def test_maxsim_passes():
    judge = load_maxsim(threads=1)
    await check_parity(judge, None, RerankerSettings().tolerance)
    await judge.close()


async def test_only_maxsim_having_passed_is_noted(tmp_path):
    judge = load_maxsim(threads=1)
    settings = RerankerSettings(model="maxsim", canary_cache=tmp_path / "notes")
    cache = parity_cache(settings, judge)
    await check_parity(judge, None, settings.tolerance, cache)
    assert cache.read() is not None
    await check_parity(Silent(), None, settings.tolerance, cache)
    for other in ("vllm:x", "vllm+http://127.0.0.1:1"):
        assert parity_cache(settings.model_copy(update={"model": other}), judge) is None
    await judge.close()


def test_the_tolerance_follows_the_precision(monkeypatch):
    monkeypatch.delenv("MMESH_RERANKER_DTYPE", raising=False)  # set for meshes of other tests
    assert RerankerSettings().tolerance == 1e-3
    assert RerankerSettings(model="vllm:x", dtype="float32").tolerance == 1e-3
    assert RerankerSettings(model="vllm:x").tolerance == 2e-2
    assert RerankerSettings(parity_tolerance=0.5).tolerance == 0.5
