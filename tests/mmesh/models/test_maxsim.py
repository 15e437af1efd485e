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
