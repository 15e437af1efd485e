"""Attributes are answered as they were written, and what is remembered has an end."""

import json

from mmesh import wire
from services.index.attribute_cache import AttributeCache


def text_of(number, size=10):
    return json.dumps({"number": number, "name": "x" * size, "is_odd": number % 2 == 1})


def attributes_of(message):
    return wire.attributes_from_pb(message.values, "attributes")


def test_attributes_are_the_same_the_first_time_and_later():
    cache = AttributeCache()
    for _ in range(2):
        for number in range(10):
            assert attributes_of(cache.message(text_of(number))) == json.loads(text_of(number))


def test_what_is_answered_may_be_changed():
    cache = AttributeCache()
    cache.message(text_of(1)).values.clear()
    assert attributes_of(cache.message(text_of(1))) == json.loads(text_of(1))


def test_it_is_bounded_by_bytes_and_forgets_what_was_not_asked_for_longest():
    cache = AttributeCache(max_bytes=10_000)
    for number in range(1000):
        cache.message(text_of(number))
        cache.message(text_of(0))
        assert cache.size_bytes <= 10_000
    assert text_of(0) in cache._known
    assert text_of(1) not in cache._known


def test_attributes_larger_than_the_cache_are_answered_and_not_kept():
    cache = AttributeCache(max_bytes=10_000)
    large = text_of(1, size=20_000)
    assert attributes_of(cache.message(large)) == json.loads(large)
    assert cache.size_bytes == 0
