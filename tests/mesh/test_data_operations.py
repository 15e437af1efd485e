"""Operations on data through the gateway: settings, aliases, filters, vectors, pages, files."""

from __future__ import annotations

import functools
import json
import uuid

import grpc
import numpy as np
import pytest

from mmesh import Client, CollectionLimits, CollectionSettings, Content, DataType, Embedded, wire
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.candidates import Candidate
from mmesh.content import Image
from mmesh.errors import (
    AliasNotFound,
    CollectionExists,
    CollectionFull,
    CollectionNotFound,
    CollectionReadOnly,
    DimMismatch,
    InvalidField,
    InvalidFilter,
    InvalidVector,
    MessageTooLarge,
    ModelMismatch,
)
from mmesh.filter_language import parse_filter
from mmesh.filters import AllOf
from mmesh.search import Consistency, Rerank

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MIB = 1 << 20


@pytest.fixture(scope="module")
def stub(mesh, open_channel) -> rpc.RetrievalServiceStub:
    return rpc.RetrievalServiceStub(open_channel(mesh.address))


def texts(count: int, prefix: str = "t", **attributes: object) -> list[Candidate]:
    return [
        Candidate(f"{prefix}{n:03}", Content.of(f"{prefix} number {n}"), {"n": n} | attributes)
        for n in range(count)
    ]


def unit_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def listed(client: Client, collection: str, **options: object) -> list[Candidate]:
    found, token = [], ""
    while True:
        page = client.list_candidates(collection, page_token=token, **options)
        found += page.candidates
        if not (token := page.next_token):
            return found


def ids_found(client: Client, collection: str, query: str, **options: object) -> list[str]:
    found = client.search(
        collection, query, consistency=Consistency.STRONG, require_all_shards=True, **options
    )
    return [hit.id for hit in found.hits]


# -- settings


def test_settings_are_kept_until_they_are_changed(client):
    name = f"settings-{uuid.uuid4().hex[:8]}"
    settings = CollectionSettings("Flat", 0.9, CollectionLimits(1000, 10_000, 8, 4, 100))
    try:
        assert client.create_collection(name, settings).settings == settings
        again = client.create_collection(name, CollectionSettings("IVF8,Flat"))
        assert again.settings == settings  # as it was
        changed = CollectionSettings("", 0.9, CollectionLimits(1000, 10_000, 8, 4, 7))
        assert client.update_collection(name, index_factory="", max_limit=7).settings == changed
        assert client.get_collection(name).settings == changed
        assert {c.name: c for c in client.list_collections()}[name].settings == changed
    finally:
        client.delete_collection(name)


def test_settings_of_a_collection_that_is_not_there_cannot_change(client):
    with pytest.raises(CollectionNotFound):
        client.update_collection("not-there", max_limit=7)


def test_a_mask_that_names_no_setting_is_refused_by_name(stub, refusal, collection):
    request = pb.UpdateCollectionRequest(name=collection)
    request.update_mask.paths.extend(["recall_target", "name"])
    refused = refusal(lambda: stub.UpdateCollection(request, timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_FIELD")
    assert refused.fields == ["update_mask.paths[1]"]


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"max_candidates": -1}, "settings.limits.max_candidates"),
        ({"max_candidate_bytes": -1}, "settings.limits.max_candidate_bytes"),
        ({"max_attributes": 65}, "settings.limits.max_attributes"),
        ({"max_filter_depth": 17}, "settings.limits.max_filter_depth"),
        ({"max_limit": 1001}, "settings.limits.max_limit"),
    ],
)
def test_limits_beyond_those_of_the_api_are_refused_by_name(
    stub, refusal, collection, limits, field
):
    settings = {"limits": limits}
    create = pb.CreateCollectionRequest(name="never-made", settings=settings)
    update = pb.UpdateCollectionRequest(name=collection, settings=settings)
    for call, request in ((stub.CreateCollection, create), (stub.UpdateCollection, update)):
        refused = refusal(lambda call=call, request=request: call(request, timeout=10))
        assert (refused.code, refused.reason) == (INVALID, "INVALID_FIELD")
        assert refused.fields == [field]


def test_a_factory_that_faiss_does_not_know_is_refused(client):
    with pytest.raises(InvalidField) as refused:
        client.create_collection("never-made", CollectionSettings(index_factory="Nonsense17"))
    assert refused.value.field == "settings.index_factory"


# -- limits


@pytest.fixture
def limited(client):
    """Make collections with limits; they are deleted in the end."""
    made = []

    def make(**limits: int) -> str:
        name = f"limited-{uuid.uuid4().hex[:8]}"
        client.create_collection(name, CollectionSettings(limits=CollectionLimits(**limits)))
        made.append(name)
        return name

    yield make
    for name in made:
        client.delete_collection(name)


def test_a_full_collection_takes_no_more_but_can_be_rewritten(client, limited):
    name = limited(max_candidates=5)
    client.upsert_candidates(name, texts(5))
    with pytest.raises(CollectionFull) as refused:
        client.upsert_candidates(name, texts(6))
    assert refused.value.retry_after_s is None
    client.upsert_candidates(name, texts(5, colour="red"))
    client.delete_candidates(name, ["t000"])
    client.upsert_candidates(name, texts(1, "new"))
    assert len(listed(client, name)) == 5


def test_an_ingest_into_a_full_collection_ends_at_once(client, limited):
    name = limited(max_candidates=10)
    with pytest.raises(CollectionFull):
        client.ingest(name, texts(50), batch_size=5, patience_s=30)
    assert len(listed(client, name)) == 10


def test_limits_of_a_candidate_are_refused_by_name(client, limited):
    name = limited(max_candidate_bytes=200, max_attributes=2)
    good = Candidate("good", Content.of("short"), {"a": 1, "b": 2})
    long = Candidate("long", Content.of("x" * 300))
    many = Candidate("many", Content.of("short"), {"a": 1, "b": 2, "c": 3})
    for bad, field in ((long, "candidates[1]"), (many, "candidates[1].attributes")):
        with pytest.raises(InvalidField) as refused:
            client.upsert_candidates(name, [good, bad])
        assert refused.value.field == field
    report = client.ingest(name, [good, long, many])
    assert report.stored == 1
    assert {one.id for one in report.rejected} == {"long", "many"}


def test_a_filter_that_is_too_deep_for_the_collection_is_refused(client, limited):
    name = limited(max_filter_depth=2)
    client.upsert_candidates(name, texts(3))
    assert ids_found(client, name, "number", filter=parse_filter("n = 1 and n < 2")) == ["t001"]
    deep = parse_filter("n = 1 and (n < 2 or not n = 0)")
    with pytest.raises(InvalidFilter):
        client.search(name, "number", filter=deep)
    with pytest.raises(InvalidFilter):
        client.delete_candidates_by_filter(name, deep)


def test_more_hits_than_the_collection_allows_are_refused(client, limited):
    name = limited(max_limit=5)
    client.upsert_candidates(name, texts(20))
    with pytest.raises(InvalidField) as refused:
        client.search(name, "number", limit=6, rerank=Rerank(0))
    assert refused.value.field == "limit"
    assert len(ids_found(client, name, "number", limit=5, rerank=Rerank(0))) == 5


def test_reranking_goes_as_deep_as_the_collection_allows(client, limited):
    name = limited(max_limit=5)
    client.upsert_candidates(name, texts(20))
    assert len(ids_found(client, name, "number", limit=3, rerank=Rerank(20))) == 3


# -- aliases


@pytest.fixture
def alias(client):
    name = f"alias-{uuid.uuid4().hex[:8]}"
    yield name
    if any(name in one.aliases for one in client.list_collections()):
        client.delete_alias(name)


def test_an_alias_is_taken_for_its_collection(client, collection, alias):
    assert client.set_alias(alias, collection) == ""
    assert client.get_collection(alias).name == collection
    assert client.get_collection(collection).aliases == (alias,)
    client.upsert_candidates(alias, texts(3))
    assert ids_found(client, alias, "number 1", limit=1, rerank=Rerank(0)) == ["t001"]
    assert [c.id for c in listed(client, alias)] == ["t000", "t001", "t002"]
    assert len(client.batch_get_candidates(alias, ["t000"])) == 1
    assert client.delete_candidates(alias, ["t000"])[0] == 1
    assert client.ingest(alias, texts(4)).stored == 4


def test_an_alias_switches_from_one_collection_to_the_next(
    client, collection, alias, new_collection, eventually
):
    with new_collection(client) as second:
        client.upsert_candidates(collection, texts(3, "old"))
        client.upsert_candidates(second, texts(3, "new"))
        client.set_alias(alias, collection)
        assert all(i.startswith("old") for i in ids_found(client, alias, "number"))
        assert client.set_alias(alias, second) == collection
        assert all(i.startswith("new") for i in ids_found(client, alias, "number"))
        eventually(
            lambda: client.search(alias, "number").hits[0].id.startswith("new"),
            "searches that may be stale see the switch",
        )
        assert client.get_collection(collection).aliases == ()


def test_an_alias_goes_and_its_collection_stays(client, collection, alias):
    client.set_alias(alias, collection)
    client.delete_alias(alias)
    with pytest.raises(CollectionNotFound):
        client.get_collection(alias)
    with pytest.raises(AliasNotFound):
        client.delete_alias(alias)
    assert client.get_collection(collection).name == collection


def test_an_alias_goes_with_its_collection_but_does_not_delete_it(client, alias):
    name = f"aliased-{uuid.uuid4().hex[:8]}"
    client.create_collection(name)
    client.set_alias(alias, name)
    with pytest.raises(CollectionNotFound):
        client.delete_collection(alias)
    client.delete_collection(name)
    with pytest.raises(CollectionNotFound):
        client.get_collection(alias)


def test_names_and_aliases_do_not_meet(client, collection, alias):
    client.set_alias(alias, collection)
    with pytest.raises(CollectionExists):
        client.create_collection(alias)
    with pytest.raises(CollectionExists):
        client.set_alias(collection, collection)
    with pytest.raises(CollectionNotFound):
        client.set_alias(alias, "not-there")
    with pytest.raises(InvalidField) as refused:
        client.set_alias("Not A Name", collection)
    assert refused.value.field == "alias"


# -- copies


@pytest.fixture
def copy(client):
    name = f"copy-{uuid.uuid4().hex[:8]}"
    yield name
    if any(one.name == name for one in client.list_collections()):
        client.delete_collection(name)


def test_a_copy_stays_what_its_source_was_with_its_pictures(client, collection, copy, pictures):
    picture = Candidate("picture", Content.of(pictures.png(7)))
    client.upsert_candidates(collection, [*texts(3), picture])
    made = client.copy_collection(collection, copy)
    assert (made.name, made.settings.read_only) == (copy, True)
    client.upsert_candidates(collection, texts(2, "more"))
    client.delete_candidates(collection, ["t000", "picture"])
    assert [one.id for one in listed(client, copy)] == ["picture", "t000", "t001", "t002"]
    assert client.batch_get_candidates(copy, ["picture"])[0].content == picture.content
    found = client.search(copy, "number 0", rerank=Rerank(0), token=made.token)
    assert {hit.id for hit in found.hits} == {"picture", "t000", "t001", "t002"}
    assert client.get_collection(copy, include_attributes=True).attributes[0].count == 3


def test_a_copy_refuses_every_write_with_a_reason(client, collection, copy):
    client.upsert_candidates(collection, texts(3))
    made = client.copy_collection(collection, copy)
    for write in (
        lambda: client.upsert_candidates(copy, texts(1)),
        lambda: client.delete_candidates(copy, ["t000"]),
        lambda: client.delete_candidates_by_filter(copy, AllOf(())),
        lambda: client.ingest(copy, texts(3)),
    ):
        with pytest.raises(CollectionReadOnly) as refused:
            write()
        assert refused.value.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert client.get_collection(copy).token == made.token
    client.update_collection(copy, read_only=False)
    assert client.delete_candidates(copy, ["t000"])[0] == 1


def test_a_copy_needs_a_source_and_a_name_of_its_own(client, collection, copy):
    with pytest.raises(CollectionNotFound):
        client.copy_collection("not-there", copy)
    with pytest.raises(CollectionExists):
        client.copy_collection(collection, collection)
    with pytest.raises(InvalidField) as refused:
        client.copy_collection(collection, "Not A Name")
    assert refused.value.field == "name"


# -- deleting by filter


def test_what_a_filter_holds_for_is_deleted_and_nothing_else(client, collection):
    client.ingest(collection, texts(300))
    condition = parse_filter("n >= 100 and not n in (150, 151)")
    deleted, token = client.delete_candidates_by_filter(collection, condition)
    assert deleted == 198
    left = [f"t{n:03}" for n in (*range(100), 150, 151)]
    assert [one.id for one in listed(client, collection)] == left
    found = client.search(collection, "number 200", token=token, limit=200, rerank=Rerank(0))
    assert {hit.id for hit in found.hits} == set(left)
    assert client.delete_candidates_by_filter(collection, condition)[0] == 0


def test_an_empty_conjunction_deletes_everything(client, collection):
    client.upsert_candidates(collection, texts(20))
    assert client.delete_candidates_by_filter(collection, AllOf(()))[0] == 20
    assert listed(client, collection) == []


def test_deleting_without_a_filter_is_refused(stub, refusal, collection):
    request = pb.DeleteCandidatesByFilterRequest(collection=collection)
    refused = refusal(lambda: stub.DeleteCandidatesByFilter(request, timeout=10))
    assert refused.code is INVALID
    assert refused.fields == ["filter"]


# -- vectors that were made elsewhere


@pytest.mark.parametrize("data_type", list(DataType))
def test_given_vectors_are_what_is_searched(client, collection, data_type):
    """The vectors are those of other texts, so hits can come from them only."""
    made = client.get_collection(collection)
    other = ["a cat on a sofa", "a rocket on its pad", "a violin in its case"]
    token = client.upsert_candidates(
        collection, [Candidate(f"o{n}", Content.of(text)) for n, text in enumerate(other)]
    ).token
    page = client.list_candidates(collection, include_vectors=True)
    assert page.model_fingerprint == made.model_fingerprint
    assert page.vectors.shape == (3, made.dim)
    np.testing.assert_allclose(np.linalg.norm(page.vectors, axis=1), 1, rtol=1e-5)
    client.delete_candidates(collection, [one.id for one in page.candidates])
    token = client.upsert_candidates(
        collection,
        texts(3, "x"),
        vectors=page.vectors,
        model_fingerprint=page.model_fingerprint,
        data_type=data_type,
    ).token
    for n, query in enumerate(other):
        found = client.search(collection, query, token=token, limit=1, rerank=Rerank(0))
        assert [hit.id for hit in found.hits] == [f"x{n:03}"]
    stored = client.list_candidates(collection, include_vectors=True).vectors
    closeness = {DataType.FLOAT32: 1e-6, DataType.FLOAT16: 1e-5, DataType.INT8: 1e-3}[data_type]
    assert (np.einsum("nd,nd->n", stored, page.vectors) > 1 - closeness).all()


@pytest.mark.parametrize("data_type", list(DataType))
def test_a_stream_takes_vectors_and_contents_side_by_side(client, collection, data_type):
    made = client.get_collection(collection)
    rows = unit_vectors(150, made.dim)
    mixed = [Embedded(one, rows[n]) if n % 50 < 30 else one for n, one in enumerate(texts(150))]
    report = client.ingest(
        collection, mixed, model_fingerprint=made.model_fingerprint, data_type=data_type
    )
    assert (report.stored, report.rejected) == (150, ())
    page = client.list_candidates(collection, page_size=1000, include_vectors=True)
    dots = np.einsum("nd,nd->n", page.vectors, rows)
    is_given = np.arange(150) % 50 < 30
    assert (dots[is_given] > 0.999).all()
    assert (dots[~is_given] < 0.9).all()


def test_pictures_with_vectors_are_not_decoded(client, collection):
    made = client.get_collection(collection)
    candidate = Candidate("odd", Content.of(b"a format that only its maker reads"))
    client.upsert_candidates(
        collection,
        [candidate],
        vectors=unit_vectors(1, made.dim),
        model_fingerprint=made.model_fingerprint,
    )
    assert client.batch_get_candidates(collection, ["odd"]) == [candidate]


def test_vectors_of_another_width_or_model_are_refused(client, collection):
    made = client.get_collection(collection)
    good, wide = unit_vectors(2, made.dim), unit_vectors(2, made.dim + 1)
    for vectors, model, error in (
        (wide, made.model_fingerprint, DimMismatch),
        (good, "another", ModelMismatch),
        (good, "", ModelMismatch),
    ):
        options = {"vectors": vectors, "model_fingerprint": model}
        with pytest.raises(error):
            client.upsert_candidates(collection, texts(2), **options)
        embedded = [Embedded(one, row) for one, row in zip(texts(2), vectors, strict=True)]
        with pytest.raises(error):
            client.ingest(collection, embedded, model_fingerprint=model)
    assert listed(client, collection) == []


def test_vectors_that_are_not_one_for_each_candidate_are_refused(stub, refusal, collection):
    vectors = wire.vectors_to_pb(unit_vectors(3, 8))
    messages = [wire.candidate_to_pb(one) for one in texts(2)]
    upsert = pb.UpsertCandidatesRequest(collection=collection, candidates=messages, vectors=vectors)
    assert refusal(lambda: stub.UpsertCandidates(upsert, timeout=10)).fields == ["vectors"]
    batch = pb.IngestBatch(sequence=1, candidates=messages, vectors=vectors)
    opening = pb.IngestOpen(collection=collection, ingest_id="one")
    stream = [pb.IngestRequest(open=opening), pb.IngestRequest(batch=batch)]
    refused = refusal(lambda: list(stub.Ingest(iter(stream), timeout=10)))
    assert (refused.code, refused.fields) == (INVALID, ["batch.vectors"])


def test_a_bad_vector_in_a_stream_is_refused_by_number_and_the_rest_is_stored(
    stub, client, collection
):
    made = client.get_collection(collection)
    rows = unit_vectors(5, made.dim)
    rows[1, 3], rows[3] = np.nan, 0
    batch = pb.IngestBatch(
        sequence=1,
        candidates=[wire.candidate_to_pb(one) for one in texts(5)],
        vectors=wire.vectors_to_pb(rows),
        model_fingerprint=made.model_fingerprint,
    )
    opening = pb.IngestOpen(collection=collection, ingest_id="one")
    stream = [pb.IngestRequest(open=opening), pb.IngestRequest(batch=batch)]
    events = list(stub.Ingest(iter(stream), timeout=30))
    (rejected,) = [e.rejected for e in events if e.WhichOneof("event") == "rejected"]
    assert [(one.id, one.number, one.problem.reason) for one in rejected.candidates] == [
        ("t001", 1, "INVALID_VECTOR"),
        ("t003", 3, "INVALID_VECTOR"),
    ]
    (ack,) = [e.ack for e in events if e.WhichOneof("event") == "ack"]
    assert ack.stored == 3
    assert [one.id for one in listed(client, collection)] == ["t000", "t002", "t004"]


def test_a_bad_vector_is_named_before_anything_is_sent(client, collection):
    rows = unit_vectors(2, 8)
    rows[1, 0] = np.inf
    with pytest.raises(InvalidVector) as refused:
        client.upsert_candidates(collection, texts(2), vectors=rows)
    assert refused.value.field == "vectors[1]"
    with pytest.raises(InvalidField):
        client.upsert_candidates(collection, texts(3), vectors=rows)


# -- pages


def test_pages_with_pictures_fit_into_a_message(client, collection):
    """42 MiB of pictures in candidates of very different sizes, in pages of up to 1000."""
    made = client.get_collection(collection)
    sizes = [(1, 1), (5, 2), (17, 1), (1, 2), (5, 2), (1, 1), (1, 1)]
    given = [
        Candidate(f"p{n:02}", Content.of(f"{n}", *(bytes([n]) * (size * MIB),) * count))
        for n, (size, count) in enumerate(sizes)
    ]
    for one, row in zip(given, unit_vectors(len(given), made.dim), strict=True):
        client.upsert_candidates(
            collection, [one], vectors=row[None], model_fingerprint=made.model_fingerprint
        )
    pages, token = 0, ""
    back: list[Candidate] = []
    while True:
        page = client.list_candidates(
            collection, page_size=1000, page_token=token, include_images=True, include_vectors=True
        )
        assert page.vectors is not None
        assert len(page.vectors) == len(page.candidates)
        size = sum(len(image.data) for one in page.candidates for image in one.content.images)
        assert len(page.candidates) == 1 or size <= 16 * MIB
        back += page.candidates
        pages += 1
        if not (token := page.next_token):
            break
    assert pages > 2
    assert back == given
    without = client.list_candidates(collection, page_size=1000).candidates
    assert [c.content.images[0] for c in without] == [Image(b"")] * len(given)


def test_pictures_that_fill_more_than_a_message_cost_a_search_those_that_do_not_fit(
    client, collection, run
):
    """17 of 4 MiB, of which 14 fit. Costs 2 s."""
    made = client.get_collection(collection)
    rows = unit_vectors(17, made.dim)
    given = [Candidate(f"p{n}", Content.of(f"{n}", bytes([n]) * (4 * MIB))) for n in range(17)]
    for one, row in zip(given, rows, strict=True):
        written = client.upsert_candidates(
            collection, [one], vectors=row[None], model_fingerprint=made.model_fingerprint
        )
    found = client.search(
        collection, "p", limit=17, include_content=True, rerank=Rerank(17), token=written.token
    )
    contents = [hit.content for hit in found.hits]
    assert sum(content is not None for content in contents) == 14
    by_reason = {one.reason: one.message for one in found.degradations}
    assert by_reason["CONTENT_UNAVAILABLE"].startswith("3 of 17 hits are answered without content")
    assert "; 3 do not fit into one message" in by_reason["RERANK_PARTIAL"]
    ids = [one.id for one in given]
    with pytest.raises(MessageTooLarge, match="ask for 14 at a time"):
        client.batch_get_candidates(collection, ids)
    assert client.batch_get_candidates(collection, ids[:14]) == given[:14]
    without = client.batch_get_candidates(collection, ids, include_images=False)
    assert [one.content.images for one in without] == [(Image(b""),)] * 17
    code, shown, errors = run("show", collection, *ids)
    assert (code, errors) == (0, "")
    assert all(one in shown for one in ids)


# -- files


@pytest.fixture
def run(command_here, mesh, tmp_path):
    """Run `mmesh ARGUMENTS`; return exit code, stdout and stderr."""
    env = {"MMESH_TARGET_ADDRESS": mesh.address, "XDG_STATE_HOME": str(tmp_path / "state")}
    return functools.partial(command_here, env=env, folder=tmp_path)


@pytest.fixture
def second(client, new_collection):
    with new_collection(client) as name:
        yield name


@pytest.fixture
def filled(client, collection, pictures) -> str:
    """Texts, pictures and both, with attributes of every type."""
    attributes = {"year": 1990, "score": 2.0, "good": True, "tags": ("a", "b"), "topic": "cats"}
    found = texts(300, **attributes)
    found += [
        Candidate("picture", Content.of(pictures.png(1)), {"year": 1}),
        Candidate("both", Content.of("before", pictures.jpeg(2), "after", pictures.png(3))),
    ]
    assert client.ingest(collection, found).stored == len(found)
    return collection


def test_an_export_is_imported_as_the_same_collection(run, client, filled, second, tmp_path):
    pytest.importorskip("arro3.io", reason="Parquet is absent: pip install 'mmesh[parquet]'")
    path = tmp_path / "export.parquet"
    code, output, errors = run("export", filled, path)
    assert (code, output.split(" (")[0]) == (0, f"exported 302 candidates to {path}"), errors
    assert not path.with_name("export.parquet.part").exists()
    code, output, errors = run("import", second, path)
    assert (code, output) == (0, "stored 302, rejected 0\n"), errors
    assert "encoding anew" not in errors
    before = client.list_candidates(
        filled, page_size=1000, include_images=True, include_vectors=True
    )
    after = client.list_candidates(
        second, page_size=1000, include_images=True, include_vectors=True
    )
    assert after.candidates == before.candidates
    types = [{n: type(v) for n, v in one.attributes.items()} for one in after.candidates]
    assert types == [{n: type(v) for n, v in one.attributes.items()} for one in before.candidates]
    np.testing.assert_allclose(after.vectors, before.vectors, atol=1e-7)
    for query in ("number 17", "before", pictures_query(client, filled)):
        found = [
            client.search(name, query, limit=20, consistency=Consistency.STRONG).hits
            for name in (filled, second)
        ]
        assert [hit.id for hit in found[0]] == [hit.id for hit in found[1]]
        scores = [[hit.score for hit in hits] for hits in found]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def pictures_query(client: Client, collection: str) -> bytes:
    (found,) = client.batch_get_candidates(collection, ["picture"])
    return found.content.images[0].data


def test_an_import_without_vectors_encodes_anew_and_says_so(run, client, filled, second, tmp_path):
    pytest.importorskip("arro3.io", reason="Parquet is absent: pip install 'mmesh[parquet]'")
    path = tmp_path / "export.parquet"
    assert run("export", filled, path, "--no-vectors", "--no-images")[0] == 0
    code, output, errors = run("import", second, path)
    assert (code, output) == (1, "stored 300, rejected 2\n")
    assert "encoding anew: the file has no vectors" in errors
    assert "its pictures were left out of the export" in errors


def test_an_export_of_an_empty_collection_is_one(run, collection, second, tmp_path):
    pytest.importorskip("arro3.io", reason="Parquet is absent: pip install 'mmesh[parquet]'")
    path = tmp_path / "export.parquet"
    assert run("export", collection, path)[0] == 0
    assert run("import", second, path)[:2] == (0, "stored 0, rejected 0\n")


@pytest.mark.parametrize("data_type", list(DataType))
def test_rows_are_ingested_with_vectors_from_a_file(run, client, collection, tmp_path, data_type):
    made = client.get_collection(collection)
    rows = [{"id": one.id, "text": one.content.text} for one in texts(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    vectors = unit_vectors(100, made.dim)
    scale = 127 / np.abs(vectors).max() if data_type is DataType.INT8 else 1
    np.save(tmp_path / "rows.npy", (vectors * scale).astype(data_type.value))
    code, output, errors = run("ingest", collection, "rows.jsonl", "--vectors", "rows.npy")
    assert (code, output) == (0, "stored 100, rejected 0\n"), errors
    page = client.list_candidates(collection, page_size=1000, include_vectors=True)
    assert (np.einsum("nd,nd->n", page.vectors, vectors) > 0.999).all()


def test_vectors_from_a_file_that_do_not_fit_are_refused(run, client, collection, tmp_path):
    made = client.get_collection(collection)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", "text": "b"}))
    np.save(tmp_path / "two.npy", unit_vectors(2, made.dim))
    code, _, errors = run("ingest", collection, "rows.jsonl", "--vectors", "two.npy")
    assert code == 1
    assert "two.npy has 2 rows for 1 candidates" in errors
    np.save(tmp_path / "one.npy", unit_vectors(1, made.dim))
    model = ("--model-fingerprint", "another")
    code, _, errors = run("ingest", collection, "rows.jsonl", "--vectors", "one.npy", *model)
    assert code == 1
    assert "MODEL_MISMATCH" in errors
    assert "Traceback" not in errors
