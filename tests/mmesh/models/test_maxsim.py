import asyncio
import threading

import numpy as np
import pytest

from mmesh.content import Content
from mmesh.errors import InvalidImage
from mmesh.models.judges.maxsim import load_maxsim, maxsim


@pytest.fixture(scope="module")
def judge():
    return load_maxsim(threads=1)


def test_the_score_is_the_mean_of_the_best_cosines():
    query = np.eye(3, dtype=np.float32)[:2]
    candidate = np.float32([[1, 0, 0], [0, 0.6, 0.8]])
    assert maxsim(query, candidate) == pytest.approx((1 + 0.6) / 2)
    assert maxsim(query, candidate[:0]) == 0


async def test_the_best_answer_wins(judge):
    candidates = [Content.of(text) for text in ("a red car", "how cats see at night", "tea")]
    scores = await judge.score(Content.of("cat eyes in the dark"), "", candidates)
    assert int(np.argmax(scores)) == 1


async def test_a_score_does_not_depend_on_company_or_order(judge, pictures):
    query = Content.of("a picture of a red square")
    candidates = [Content.of(f"text {'long ' * n}") for n in range(12)]
    candidates += [Content.of(pictures.png()), Content.of(pictures.png(3), "words")]
    together = await judge.score(query, "", candidates)
    backwards = await judge.score(query, "", candidates[::-1])
    fresh = load_maxsim(threads=1)
    alone = [(await fresh.score(query, "", [candidate]))[0] for candidate in candidates]
    np.testing.assert_allclose(together, backwards[::-1], atol=1e-4)
    np.testing.assert_allclose(together, alone, atol=1e-4)


async def test_a_broken_picture_is_named(judge):
    with pytest.raises(InvalidImage) as caught:
        await judge.score(Content.of("x"), "", [Content.of("y"), Content.of(b"no picture")])
    assert caught.value.field == "candidates[1].parts[0].image.data"


class Slow:
    """Stands before a method: counts its calls, tells of the first, and waits until it may go."""

    def __init__(self, function):
        self.count, self.begun, self.may_go = 0, threading.Event(), threading.Event()
        self._function = function

    def __call__(self, *args):
        self.count += 1
        self.begun.set()
        assert self.may_go.wait(10)
        return self._function(*args)


async def cancelled_at(slow, call):
    """Cancel a call when `slow` is reached, let that go on, and see the rest of the call end."""
    task = asyncio.ensure_future(call)
    assert await asyncio.to_thread(slow.begun.wait, 10)
    task.cancel()
    await asyncio.wait([task])
    slow.may_go.set()


async def test_no_picture_is_seen_for_a_caller_who_has_gone(monkeypatch, pictures):
    judge = load_maxsim(threads=1)
    slow = Slow(judge._image.words)
    monkeypatch.setattr(judge._image, "words", slow)
    candidates = [Content.of(pictures.png(number)) for number in range(8)]
    await cancelled_at(slow, judge.score(Content.of("x"), "", candidates))
    await judge.score(Content.of("somebody else's"), "", [Content.of("text")])
    assert slow.count == 1


async def test_no_batch_is_encoded_for_a_caller_who_has_gone(monkeypatch):
    judge = load_maxsim(threads=1)
    slow = Slow(judge._text.token_vectors)
    monkeypatch.setattr(judge._text, "token_vectors", slow)
    candidates = [Content.of(f"{number} " + "long " * 200) for number in range(20)]
    await cancelled_at(slow, judge.score(Content.of("x"), "", candidates))
    await judge.score(Content.of("somebody else's"), "", [Content.of("text")])
    assert slow.count == 2


async def test_pictures_are_decoded_just_before_they_are_seen(monkeypatch, pictures):
    judge, held = load_maxsim(threads=1), [0]
    prepare, words, most = judge._image.prepare, judge._image.words, []

    def prepared(picture):
        held[0] += 1
        most.append(held[0])
        return prepare(picture)

    def seen(pixels):
        held[0] -= len(pixels)
        return words(pixels)

    monkeypatch.setattr(judge._image, "prepare", prepared)
    monkeypatch.setattr(judge._image, "words", seen)
    candidates = [Content.of(pictures.png(n), pictures.png(n + 9)) for n in range(6)]
    await judge.score(Content.of("x"), "", candidates)
    assert max(most) == 2
    assert held == [0]
