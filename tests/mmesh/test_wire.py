from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from mmesh import wire
from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.index.v1 import index_pb2
from mmesh.candidates import Candidate, check_vectors
from mmesh.collections import (
    LIMITS,
    Collection,
    CollectionLimits,
    CollectionSettings,
    check_settings,
)
from mmesh.content import WITH_IMAGE, WITH_TEXT, Content, Image, Modality
from mmesh.errors import DeadlineExceeded, Draining, InvalidField, InvalidVector, Unavailable
from mmesh.filters import AllOf, AnyOf, Compare, Exists, In, Not, Operator
from mmesh.mesh_status import MeshStatus, ServiceRole, ServiceState, ServiceStatus
from mmesh.search import MergePolicy, Rerank, Search, check_search
from mmesh.values.timestamps import to_utc
from mmesh.vectors import DataType
from mmesh.wire.search import search_from_pb, search_to_pb
from mmesh.wire.status import status_from_pb, status_to_pb
from mmesh.wire.times import NANOS, duration_to_pb, seconds_from_pb

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
parts = st.one_of(words, st.builds(Image, st.binary(min_size=1), words))
contents = st.lists(parts, min_size=1, max_size=16).map(lambda p: Content(tuple(p)))
values = st.one_of(
    words,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(words, max_size=3).map(tuple),
    st.datetimes().map(to_utc),
)
attributes = st.dictionaries(st.from_regex(r"[a-z_.\-]{1,9}", fullmatch=True), values, max_size=4)
scalars = values.filter(lambda value: not isinstance(value, tuple))
comparisons = st.one_of(
    st.builds(Compare, words, st.sampled_from([Operator.EQUAL, Operator.NOT_EQUAL]), scalars),
    st.builds(In, words, st.lists(scalars, min_size=1, max_size=3).map(tuple)),
    st.builds(Exists, words),
)
filters = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(AllOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


seconds = st.integers(0, 3600 * NANOS).map(lambda nanos: nanos / NANOS)


@given(st.builds(Candidate, words, contents, attributes))
def test_a_candidate_survives_the_wire(candidate):
    assert wire.candidate_from_pb(wire.candidate_to_pb(candidate)) == candidate


@given(filters)
def test_a_filter_survives_the_wire(condition):
    assert wire.filter_from_pb(wire.filter_to_pb(condition)) == condition


@given(
    st.builds(
        Search,
        words,
        contents,
        target=st.sampled_from([None, *Modality, WITH_IMAGE, WITH_TEXT]),
        limit=st.integers(1, 1000),
        filter=st.none() | filters,
        merge=st.sampled_from([None, *MergePolicy]),
        rerank=st.none()
        | st.builds(Rerank, st.integers(0, 256), seconds, st.integers(0, 2**31 - 1)),
        include_content=st.booleans(),
        explain=st.booleans(),
    )
)
def test_a_search_survives_the_wire(search):
    assert search_from_pb(search_to_pb(search)) == search


@pytest.mark.parametrize(
    ("target", "targets", "says"),
    [(1, [2], "goes without"), (0, [2, 0], "unspecified"), (0, [99], "99")],
)
def test_targets_that_mean_nothing_are_refused(target, targets, says):
    message = search_to_pb(Search("photos", Content.of("a cat")))
    message.target = target
    message.targets.extend(targets)
    with pytest.raises(InvalidField, match=says):
        search_from_pb(message)


@pytest.mark.parametrize("target", ["text", (), [None], {"image"}])
def test_a_target_that_is_no_modality_is_refused(target):
    with pytest.raises(InvalidField, match="give a Modality"):
        check_search(Search("photos", Content.of("a cat"), target=target))


def test_a_collection_survives_the_wire():
    counts = {modality: n for n, modality in enumerate(Modality)}
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    settings = CollectionSettings("IVF8,Flat", 0.9, CollectionLimits(1, 2, 3, 4, 5))
    names = ("current", "old")
    collection = Collection("photos", 384, "lite-1", counts, 2, made, "e:7", settings, names)
    assert wire.collection_from_pb(wire.collection_to_pb(collection)) == collection


settings = st.builds(
    CollectionSettings,
    st.text(st.characters(exclude_categories=["C", "Z"]), max_size=60),
    st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    st.builds(
        CollectionLimits,
        st.integers(0, 2**63 - 1),
        st.integers(0, 2**63 - 1),
        st.integers(0, 64),
        st.integers(0, 16),
        st.integers(0, 1000),
    ),
)


@given(settings)
def test_settings_within_bounds_survive_the_wire(settings):
    check_settings(settings)
    assert wire.settings_from_pb(wire.settings_to_pb(settings)) == settings


changes = st.fixed_dictionaries(
    {},
    optional={
        "index_factory": st.sampled_from(["", "Flat"]),
        "recall_target": st.sampled_from([0.0, 0.9]),
        "mirror": st.sampled_from(["", "photos-2"]),
        **{limit: st.integers(0, 9) for limit in LIMITS},
    },
)


@given(changes)
def test_a_change_of_settings_survives_the_wire(change):
    assert wire.change_from_pb(*wire.change_to_pb(change)) == change


@pytest.mark.parametrize(
    ("paths", "change"),
    [
        ([], {"recall_target": 0.9, "max_limit": 5}),
        (["recall_target", "mirror"], {"recall_target": 0.9, "mirror": ""}),
        (["limits"], {"max_limit": 5}),
        (["limits.max_limit", "limits.max_attributes"], {"max_limit": 5, "max_attributes": 0}),
        (
            ["*"],
            dict.fromkeys(("index_factory", "mirror"), "")
            | dict.fromkeys(LIMITS, 0)
            | {"recall_target": 0.9, "max_limit": 5, "read_only": False},
        ),
    ],
    ids=str,
)
def test_a_mask_says_which_settings_change(paths, change):
    message = collection_pb2.CollectionSettings(recall_target=0.9, limits={"max_limit": 5})
    assert wire.change_from_pb(message, FieldMask(paths=paths)) == change


def test_a_mask_that_names_no_setting_is_refused_by_name():
    mask = FieldMask(paths=["recall_target", "limits.most"])
    with pytest.raises(InvalidField, match=r"'limits\.most'") as refused:
        wire.change_from_pb(collection_pb2.CollectionSettings(), mask)
    assert refused.value.field == "update_mask.paths[1]"


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (CollectionSettings(index_factory="x" * 257), "index_factory"),
        (CollectionSettings(index_factory="Fl\0at"), "index_factory"),
        (CollectionSettings(recall_target=0.4), "recall_target"),
        (CollectionSettings(recall_target=1.01), "recall_target"),
        (CollectionSettings(recall_target=float("nan")), "recall_target"),
        (CollectionSettings(limits=CollectionLimits(max_candidates=-1)), "limits.max_candidates"),
        (CollectionSettings(limits=CollectionLimits(0, -1)), "limits.max_candidate_bytes"),
        (CollectionSettings(limits=CollectionLimits(0, 0, 65)), "limits.max_attributes"),
        (CollectionSettings(limits=CollectionLimits(0, 0, 0, 17)), "limits.max_filter_depth"),
        (CollectionSettings(limits=CollectionLimits(0, 0, 0, 0, 1001)), "limits.max_limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_out_of_bounds_is_named(bad, field):
    with pytest.raises(InvalidField) as refused:
        check_settings(bad)
    assert refused.value.field == f"settings.{field}"


@pytest.mark.parametrize(
    ("data_type", "tolerance"),
    [(DataType.FLOAT32, 1e-6), (DataType.FLOAT16, 1e-5), (DataType.INT8, 1e-3)],
)
def test_directions_survive_each_data_type(data_type, tolerance):
    rows = np.random.default_rng(1).normal(size=(50, 384)).astype(np.float32)
    rows *= np.logspace(-3, 6, 50, dtype=np.float32)[:, None]  # of any length
    back = wire.vectors_from_pb(wire.directions_to_pb(rows, data_type))
    dots = np.einsum("nd,nd->n", rows, back)
    cosines = dots / np.linalg.norm(rows, axis=1) / np.linalg.norm(back, axis=1)
    assert (cosines > 1 - tolerance).all()


@pytest.mark.parametrize("data_type", [DataType.FLOAT16, DataType.INT8])
def test_rows_that_have_the_data_type_already_travel_as_they_are(data_type):
    rows = np.array([[1, -2, 3], [100, 0, -127]], data_type.value)
    assert wire.directions_to_pb(rows, data_type).values == rows.tobytes()


def test_a_row_of_zeros_stays_one():
    for data_type in DataType:
        message = wire.directions_to_pb(np.zeros((1, 4), np.float32), data_type)
        assert not wire.vectors_from_pb(message).any()


def test_vectors_that_do_not_fit_their_candidates_are_named():
    rows = np.ones((3, 4), np.float32)
    check_vectors(rows, 3)
    for wrong in (rows[:2], rows[0], rows[None]):
        with pytest.raises(InvalidField, match="one row for each of 3 candidates"):
            check_vectors(wrong, 3)
    rows[1, 2] = np.inf
    with pytest.raises(InvalidVector) as refused:
        check_vectors(rows, 3)
    assert refused.value.field == "vectors[1]"


@pytest.mark.parametrize("wrong", [(-1, 0), (0, -1), (11, 0), (10, 1), (1, NANOS), (1, -1)])
def test_a_duration_out_of_its_limits_is_named(wrong):
    with pytest.raises(InvalidField) as refused:
        seconds_from_pb(Duration(seconds=wrong[0], nanos=wrong[1]), "wait", 10)
    assert refused.value.field == "wait"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e12])
def test_what_is_no_duration_is_not_sent(wrong):
    with pytest.raises(InvalidField, match="is no duration"):
        duration_to_pb(wrong, "wait")
    assert duration_to_pb(-1.25, "wait") == Duration(seconds=-1, nanos=-(NANOS // 4))


def test_a_status_survives_the_wire_and_states_of_a_later_release_are_failures():
    index = ServiceStatus(ServiceRole.INDEX, ServiceState.LOADING, "h:1", 1, 2, 3, "7 candidates")
    status = MeshStatus((index, ServiceStatus(ServiceRole.ENCODER, ServiceState.SERVING)), "1", 2)
    message = status_to_pb(status)
    assert status_from_pb(message) == status
    message.services[0].state = 99
    message.services[1].role = 99
    assert status_from_pb(message).services == (replace(index, state=ServiceState.FAILING),)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Draining("it shuts down"), ServiceState.DRAINING),
        (Unavailable("no connection"), ServiceState.UNREACHABLE),
        (DeadlineExceeded("too late"), ServiceState.UNREACHABLE),
        (InvalidField("shard", "is odd"), ServiceState.FAILING),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_says_which_state_its_process_is_in(error, state):
    assert ServiceState.of(error) is state


def test_a_page_has_vectors_only_when_they_were_sent():
    message = index_pb2.ListCandidatesResponse(next_page_token="next", model_fingerprint="m")
    assert wire.page_from_pb(message).vectors is None
    message.vectors.CopyFrom(wire.vectors_to_pb(np.eye(2, dtype=np.float32)))
    page = wire.page_from_pb(message)
    assert (page.next_token, page.model_fingerprint) == ("next", "m")
    np.testing.assert_array_equal(page.vectors, np.eye(2))
