"""One index process against a plain dict: any order of writes, searches, restarts and repairs.

A failure prints the steps as calls that can be pasted into a test; seeds stand for vectors.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mmesh import wire
from mmesh.api.index.v1 import collection_service_pb2, index_pb2
from mmesh.content import Modality
from mmesh.filter_language import parse_filter
from mmesh.search import Consistency
from tests.effort import EFFORT, patient

DIM = 8
BULK = 100
CALL_S = patient(10.0)
STEPS = 30
PURGE = {"purge_s": 0.3, "tombstone_s": 0.2}

numbers = st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True)
seeds = st.integers(0, 9999)
modalities = st.sampled_from([modality.value for modality in Modality])
_operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
_words = st.sampled_from(["ant", "bee", "cat", "dog"])
_leaves = st.one_of(
    st.builds("n {} {}".format, _operators, st.sampled_from([-1, 0, 2, 3, 6, 2.5])),
    st.builds("x {} {}".format, _operators, st.sampled_from([-0.5, 0, 0.25, 1])),
    st.builds('word {} "{}"'.format, _operators, _words),
    st.builds('tags {} "{}"'.format, _operators, _words),
    st.sampled_from(["even == true", "even == false", "even != true", "even != false"]),
    st.builds('word in ("{}", "{}")'.format, _words, _words),
    st.builds("n in ({}, {})".format, st.integers(0, 6), st.integers(0, 6)),
    st.just('nobody == "has this"'),
)
filters = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=4,
)


def attributes_of(seed: int, number: int) -> dict[str, object]:
    choices = random.Random(f"{seed} {number}")
    words = ["ant", "bee", "cat", "dog"]
    attributes = {
        "n": number % 7,
        "even": number % 2 == 0,
        "x": round(choices.uniform(-1, 1), 2),
        "word": choices.choice(words),
        "tags": tuple(choices.sample(words, choices.randint(1, 3))),
    }
    return {name: value for name, value in attributes.items() if choices.random() < 0.8}


traces: list[list[str]] = []
"""The steps of every run that failed; hypothesis prints its own only where a failure repeats."""


def step(method: Callable) -> Callable:
    """Write a rule down as a call that repeats it."""

    @functools.wraps(method)
    def run(self, **arguments: object) -> None:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        self.trace.append(f"state.{method.__name__}({given})")
        try:
            method(self, **arguments)
        except Exception:
            traces.append(self.trace)
            raise

    return run


class Machine(RuleBasedStateMachine):
    """A collection of its own in a process that all examples share."""

    names = itertools.count()

    def __init__(self, process, oracle, new_row) -> None:
        super().__init__()
        self._process, self._oracle, self._new_row = process, oracle, new_row
        self._oracle.rows.clear()
        self._name = self._called = f"machine-{next(self.names)}"
        self._token, self.trace = "", []
        self._seq = self._snapshots = 0

    @initialize()
    @step
    def create(self) -> None:
        self._process.create(self._name, DIM)

    # -- writes

    @rule(numbers=numbers, seed=seeds, modality=modalities)
    @step
    def upsert(self, numbers: list[int], seed: int, modality: str) -> None:
        """New candidates, new vectors of old ones, and changes of modality."""
        self._upsert(numbers, seed, modality)

    def _upsert(self, numbers: list[int], seed: int, modality: str) -> None:
        rows = {f"c{n}": self._row(seed, n, modality) for n in numbers}
        self._note(self._process.upsert(self._called, rows), len(rows))
        self._oracle.rows |= rows

    @rule(part=st.integers(0, 3), seed=seeds, modality=modalities)
    @step
    def bulk(self, part: int, seed: int, modality: str) -> None:
        """More rows than a delta takes."""
        self._upsert(list(range(part * BULK, (part + 1) * BULK)), seed, modality)

    def _row(self, seed: int, number: int, modality: str):
        attributes = attributes_of(seed, number)
        return self._new_row((seed, number), DIM, Modality(modality), **attributes)

    @rule(numbers=numbers)
    @step
    def delete(self, numbers: list[int]) -> None:
        self._delete(numbers)

    def _delete(self, numbers: list[int]) -> None:
        ids = [f"c{n}" for n in numbers]
        wanted = [i for i in ids if self._oracle.rows.pop(i, None)]
        count, token = self._process.delete(self._called, ids)
        assert count == len(wanted)
        self._note(token, count)

    @rule(part=st.integers(0, 3))
    @step
    def delete_bulk(self, part: int) -> None:
        self._delete(list(range(part * BULK, (part + 1) * BULK)))

    @rule(expression=filters)
    @step
    def delete_by_filter(self, expression: str) -> None:
        condition = parse_filter(expression)
        wanted = self._oracle.matching(condition)
        request = index_pb2.DeleteCandidatesByFilterRequest(
            collection=self._called, filter=wire.filter_to_pb(condition)
        )
        reply = self._process.index.DeleteCandidatesByFilter(request, timeout=CALL_S)
        assert reply.deleted == len(wanted)
        for candidate_id in wanted:
            del self._oracle.rows[candidate_id]
        self._note(reply.token, reply.deleted)

    def _note(self, token: str, written: int) -> None:
        self._seq += written
        assert int(token.rpartition(":")[2]) == self._seq, "the sequence has a gap"
        self._token = token

    # -- searches

    @rule(
        seed=seeds,
        queries=st.integers(1, 3),
        limit=st.sampled_from([1, 3, 10, 100, 1000]),
        expression=st.one_of(st.none(), filters),
        consistency=st.sampled_from(["eventual", "session", "strong"]),
        wanted=st.lists(modalities, unique=True),
    )
    @step
    def search(
        self,
        seed: int,
        queries: int,
        limit: int,
        expression: str | None,
        consistency: str,
        wanted: list[str],
    ) -> None:
        self._check_search(
            [self._new_row((seed, n), DIM).vector for n in range(queries)],
            limit,
            parse_filter(expression) if expression else None,
            Consistency(consistency),
            [Modality(value) for value in wanted],
        )

    def _check_search(self, queries, limit, condition, consistency, wanted) -> None:
        session = consistency is Consistency.SESSION
        if session and not self._token:
            return
        found = self._process.search(
            self._called,
            np.stack(queries),
            limit,
            condition=condition,
            modalities=wanted,
            consistency=consistency,
            token=self._token if session else "",
        )
        seq = int(found.token.rpartition(":")[2])
        if consistency is Consistency.EVENTUAL and seq < self._seq:
            return
        assert seq == self._seq
        self._oracle.check(
            found, queries, limit, modalities=wanted or list(Modality), condition=condition
        )

    @rule()
    @step
    def read(self) -> None:
        """List and get all of it."""
        self._read()

    def _read(self) -> None:
        wanted = {i: row.attributes for i, row in self._oracle.rows.items()}
        listed = self._process.listed(self._called)
        assert [candidate.id for candidate in listed] == sorted(wanted)
        assert {candidate.id: candidate.attributes for candidate in listed} == wanted
        ids = sorted(wanted)[:50]
        found = self._process.get(self._called, [*ids, "nobody"])
        assert {i: c.content.modality for i, c in found.items()} == {
            i: self._oracle.rows[i].modality for i in ids
        }

    # -- what must not change any answer

    @rule(pause_s=st.sampled_from([0.0, 0.0, 0.5]))
    @step
    def restart(self, pause_s: float) -> None:
        """Kill it, at once or after builds and purges; it is ready when it has caught up."""
        time.sleep(pause_s)
        self._process.end()
        self._process.start()
        self._process.wait_ready()
        queries = [np.eye(1, DIM, dtype=np.float32)[0]]
        found = self._process.search(self._called, np.stack(queries), 1000)
        self._oracle.check(found, queries, 1000)

    @rule()
    @step
    def compact(self) -> None:
        request = index_pb2.CompactRequest(collection=self._called)
        segments = self._process.index.Compact(request, timeout=3 * CALL_S).segments
        assert sum(s.rows - s.deleted for s in segments) <= len(self._oracle.rows)

    @rule()
    @step
    def snapshot(self) -> None:
        request = index_pb2.CreateSnapshotRequest(collection=self._called)
        number = self._process.index.CreateSnapshot(request, timeout=3 * CALL_S).number
        assert number == self._snapshots + 1
        self._snapshots = number

    @rule(index_factory=st.sampled_from(["", "Flat", "SQfp16"]))
    @step
    def reconfigure(self, index_factory: str) -> None:
        """Let later segments be of another kind, exact enough all the same."""
        request = collection_service_pb2.UpdateCollectionRequest(name=self._called)
        request.settings.index_factory = index_factory
        request.update_mask.paths.append("index_factory")
        self._process.collections.UpdateCollection(request, timeout=CALL_S)

    @precondition(lambda self: self._called == self._name)
    @rule()
    @step
    def take_alias(self) -> None:
        """Use another name from now on."""
        self._called = f"{self._name}-alias"
        request = collection_service_pb2.SetAliasRequest(alias=self._called, collection=self._name)
        self._process.collections.SetAlias(request, timeout=CALL_S)

    def teardown(self) -> None:
        request = collection_service_pb2.DeleteCollectionRequest(name=self._name)
        if self.trace in traces:
            with contextlib.suppress(grpc.RpcError):
                self._process.collections.DeleteCollection(request, timeout=CALL_S)
            return
        self.look_at_all()
        gone = self._process.collections.DeleteCollection(request, timeout=CALL_S)
        assert gone.deleted_candidates == len(self._oracle.rows)

    @step
    def look_at_all(self) -> None:
        self._read()
        queries = [np.eye(1, DIM, dtype=np.float32)[0]]
        self._check_search(queries, 1000, None, Consistency.STRONG, [])


@pytest.fixture
def new_machine(index_processes, tmp_path, oracle, new_row) -> Callable[[], Machine]:
    process = index_processes.start(tmp_path, fork=True, **PURGE)
    process.wait_ready()
    return lambda: Machine(process, oracle, new_row)


@pytest.mark.timeout(600)  # looking for the shortest trace of a failure takes long
def test_an_index_process_answers_as_a_dict_would(new_machine):
    traces.clear()
    try:
        run_state_machine_as_test(
            new_machine,
            settings=settings(
                max_examples=EFFORT.machine_examples,
                stateful_step_count=STEPS,
                deadline=None,
                print_blob=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except BaseException:
        print("The shortest run that failed, after `state = new_machine()`:")
        print("\n".join(min(traces, key=len, default=[])))
        raise
