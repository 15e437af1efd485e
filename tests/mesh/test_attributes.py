"""Attributes from end to end: through the SDK, the gateway and the index, and back."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from mmesh import AttributeType, Candidate, Content, parse_filter
from mmesh.errors import InvalidField, InvalidFilter

MAY = datetime(2024, 5, 1, tzinfo=UTC)
INDIA = timezone(timedelta(hours=5.5))


def test_moments_of_all_kinds_are_one_and_come_back_in_utc(client, collection):
    moments = {
        "date": date(2024, 5, 1),
        "naive": datetime(2024, 5, 1),
        "aware": datetime(2024, 5, 1, 5, 30, tzinfo=INDIA),
    }
    made = [Candidate(i, Content.of(f"a text {i}"), {"taken": m}) for i, m in moments.items()]
    made.append(Candidate("never", Content.of("a text never taken")))
    token = client.upsert_candidates(collection, made).token
    found = client.batch_get_candidates(collection, list(moments))
    assert [one.attributes for one in found] == [{"taken": MAY}] * 3
    for expression, wanted in (
        ("taken = 2024-05-01", set(moments)),
        ("taken > 2024-05-01", set()),
        ("taken is null", {"never"}),
    ):
        condition = parse_filter(expression)
        result = client.search(collection, "a text", filter=condition, token=token)
        assert {hit.id for hit in result.hits} == wanted
        assert all(hit.attributes.get("taken", MAY) == MAY for hit in result.hits)
    count, _ = client.delete_candidates_by_filter(collection, parse_filter("exists taken"))
    assert count == 3


def test_prices_widen_and_their_type_is_forgotten_with_them(client, collection):
    def put(**prices: object) -> str:
        made = [Candidate(i, Content.of("goods"), {"price": p}) for i, p in prices.items()]
        return client.upsert_candidates(collection, made).token

    token = put(a=10)
    token = put(b=9.99, c=2**53 + 1)
    cheap = client.search(collection, "goods", filter=parse_filter("price < 10"), token=token)
    assert [hit.id for hit in cheap.hits] == ["b"]
    (price,) = client.get_collection(collection, include_attributes=True).attributes
    assert (price.name, price.type, price.count) == ("price", AttributeType.FLOAT, 3)
    with pytest.raises(InvalidField, match="of type string; in this collection it is float"):
        put(d="cheap")
    client.delete_candidates(collection, ["a", "b", "c"])
    token = put(d="cheap")
    with pytest.raises(InvalidFilter, match="of type string"):
        client.search(collection, "goods", filter=parse_filter("price < 10"), token=token)


def test_a_misspelt_attribute_is_said(client, collection):
    token = client.upsert_candidates(
        collection, [Candidate("a", Content.of("goods"), {"price": 10})]
    ).token
    wanted = parse_filter("prise < 10")
    found = client.search(collection, "goods", filter=wanted, token=token)
    messages = {one.reason: one.message for one in found.degradations}
    assert "did you mean 'price'?" in messages["ATTRIBUTE_UNKNOWN"]
