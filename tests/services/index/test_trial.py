"""Index factories: which are offered, and which a trial build finds to be good for nothing.

Each trial is a process: about 0.5 s.
"""

import asyncio
import re

import pytest

from mmesh.errors import InvalidField
from services.index.build.trial import Trials, problem_of


@pytest.fixture
def trials():
    return Trials()


@pytest.mark.parametrize(
    "index_factory",
    [
        "Flat",
        "SQ8",
        "PQ8x12",
        "IVF4096,SQ8",
        "IVF64,PQ32",
        "IVF1024_HNSW32,PQ32x4fs,RFlat",
        "IVF256,PQ32x4fs,Refine(SQfp16)",
        "HNSW32,SQfp16",
        "RR64,RaBitQfs,Refine(SQfp16)",
        "OPQ16_64,IVF256,PQ16x4fs,Refine(SQfp16)",
        "PCAR32,Flat",
        "ITQ32,SQ8",
    ],
)
def test_structures_that_serve_pass_the_trial(index_factory):
    assert problem_of(index_factory, 64) == ""


@pytest.mark.parametrize("dim", [1, 2, 8, 1024])
def test_they_pass_for_any_dim(dim):
    assert problem_of("SQ8", dim) == ""
    assert problem_of("HNSW16", dim) == ""


REFUSED = {
    "IVF16": "could not parse",
    "Flat,Flat": "could not parse",
    "Refine(Flat)": "could not parse",
    "IVF16,PQ7": "multiple of the number of subquantizers",
    "PCA65,Flat": "cannot output 65 dimensions",
    "PCA1048576,Flat": "cannot output",
    "ITQ1048576,SQ8": "cannot output",
    "OPQ0,Flat": "M must be > 0",
    "OPQ3,Flat": "multiple",
    "PQ8x4fs_1000000": "not instantiated",
    "PCA0,Flat": "finds next to nothing",
}


@pytest.mark.parametrize(("index_factory", "problem"), REFUSED.items())
async def test_what_cannot_be_built_or_finds_nothing_is_refused(trials, index_factory, problem):
    with pytest.raises(InvalidField) as refused:
        await trials.check(index_factory, 64)
    assert problem in refused.value.problem
    assert not re.search(r"\.cpp|\.h:|/project|void", refused.value.problem)


@pytest.mark.parametrize(
    "index_factory",
    [
        "HNSW0",
        "IVF4_HNSW0,Flat",
        "HNSW1",
        "RR0,Flat",
        "RR1048576,Flat",
        "OPQ1_1048576,Flat",
        ",".join(["RR1000000"] * 20 + ["Flat"]),
    ],
)
async def test_what_kills_its_builder_or_wants_all_memory_is_refused(trials, index_factory):
    with pytest.raises(InvalidField) as refused:
        await trials.check(index_factory, 64)
    assert refused.value.field == "settings.index_factory"
    assert "for dim 64" in refused.value.problem or "memory" in refused.value.problem


async def test_what_takes_too_long_is_refused():
    with pytest.raises(InvalidField, match="takes over 1 s"):
        await Trials(cpu_s=1).check("RR4096,SQ8", 4096)


async def test_a_structure_is_tried_once(trials):
    await trials.check("SQ8", 16)
    async with asyncio.timeout(0):  # which a process would not be ready for
        await trials.check("SQ8", 16)


@pytest.mark.parametrize(
    "index_factory",
    [
        "flat",
        "IVF",
        "IVF0,Flat",
        "IVF99999999999999999999,Flat",
        "IVF1048577,Flat",
        "PQ64x24",
        "HNSW1000",
        "HNSW16,RaBitQ",
        "IDMap,Flat",
        "IDMap2,HNSW16",
        "IMI2x12,Flat",
        "LSH",
        "RQ8x8",
        "Flat\0",
        "Flat," * 100,
        "Ünïcode",
    ],
)
async def test_what_is_not_offered_is_refused_without_a_trial(trials, index_factory):
    with pytest.raises(InvalidField, match=r"settings\.index_factory"):
        async with asyncio.timeout(0):
            await trials.check(index_factory, 64)


async def test_the_automatic_structure_needs_no_trial(trials):
    async with asyncio.timeout(0):
        await trials.check("", 64)
