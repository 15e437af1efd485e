from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mmesh import wire
from mmesh.candidates import Candidate, Collection, MergePolicy, Rerank, Search
from mmesh.content import Content, Image, Modality
from mmesh.filters import AllOf, AnyOf, Compare, In, Not, Operator
from mmesh.searches import search_from_pb, search_to_pb

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
parts = st.one_of(words, st.builds(Image, st.binary(min_size=1), words))
contents = st.lists(parts, min_size=1, max_size=16).map(lambda p: Content(tuple(p)))
values = st.one_of(
    words,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(words, max_size=3).map(tuple),
)
attributes = st.dictionaries(st.from_regex(r"[a-z_.\-]{1,9}", fullmatch=True), values, max_size=4)
scalars = values.filter(lambda value: not isinstance(value, tuple))
comparisons = st.one_of(
    st.builds(Compare, words, st.sampled_from([Operator.EQUAL, Operator.NOT_EQUAL]), scalars),
    st.builds(In, words, st.lists(scalars, min_size=1, max_size=3).map(tuple)),
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
        target=st.sampled_from([None, *Modality]),
        limit=st.integers(1, 1000),
        filter=st.none() | filters,
        merge=st.sampled_from([None, *MergePolicy]),
        rerank=st.none() | st.builds(Rerank, st.integers(0, 256), st.floats(0, 3600)),
        include_content=st.booleans(),
    )
)
def test_a_search_survives_the_wire(search):
    assert search_from_pb(search_to_pb(search)) == search


def test_a_collection_survives_the_wire():
    counts = {modality: n for n, modality in enumerate(Modality)}
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    collection = Collection("photos", 384, "lite-1", counts, 2, made, "e:7")
    assert wire.collection_from_pb(wire.collection_to_pb(collection)) == collection
