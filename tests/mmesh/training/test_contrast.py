"""The loss, its masks and its cached gradients, against others' and against plain arithmetic."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")

from mmesh.training.cached_gradients import backward  # noqa: E402
from mmesh.training.contrast import contrast, false_negatives  # noqa: E402
from mmesh.training.examples import Example, Item, Lesson, Told  # noqa: E402

pytestmark = pytest.mark.training


def unit_rows(count: int, seed: int) -> object:
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_the_loss_is_the_cross_entropy_of_what_is_not_masked() -> None:
    queries, candidates = unit_rows(4, 1), unit_rows(7, 2)
    masked = torch.zeros(4, 7, dtype=torch.bool)
    masked[0, 3] = masked[2, 6] = True
    found = contrast(queries, candidates, masked, torch.tensor(20.0))
    losses = []
    for row in range(4):
        scores = [
            20 * float(queries[row] @ candidates[column])
            for column in range(7)
            if not masked[row, column]
        ]
        right = 20 * float(queries[row] @ candidates[row])
        losses.append(math.log(sum(map(math.exp, scores))) - right)
    assert float(found.loss) == pytest.approx(sum(losses) / 4, abs=1e-5)


def told(lessons: list[Lesson]) -> tuple[list[Told], list[Told]]:
    queries = [Told.of(one.example.query) for one in lessons]
    candidates = [Told.of(one.positive) for one in lessons]
    return queries, candidates + [Told.of(item) for one in lessons for item in one.negatives]


def lesson(query: str, *positives: Item, negatives: tuple[Item, ...] = ()) -> Lesson:
    return Lesson(Example(query, Item(query), positives), positives[0], negatives)


def test_what_answers_as_well_is_masked(tmp_path, pictures) -> None:
    (tmp_path / "a.png").write_bytes(pictures.png(1))
    (tmp_path / "copy.png").write_bytes(pictures.png(1))
    lessons = [
        lesson("one", Item("same", id="c1")),
        lesson("two", Item("same", id="c2")),  # the same text under another id
        lesson("three", Item("x", id="c3"), Item("y", id="c4")),
        lesson("four", Item("y", id="c4")),  # the other answer of "three"
        lesson("five", Item("", tmp_path / "a.png", "c5")),
        lesson("six", Item("shown", tmp_path / "copy.png", "c6")),  # the same picture, with words
        lesson("one", Item("z", id="c7")),  # the same query
        lesson("free", Item("w", id="c8"), negatives=(Item("x", id="c3"),)),
    ]
    queries, candidates = told(lessons)
    masked = false_negatives(lessons, queries, candidates)
    expected = {
        (0, 1), (1, 0), (0, 6), (6, 0), (6, 1), (2, 3), (4, 5), (5, 4), (2, 8),
    }  # fmt: skip
    assert {tuple(place) for place in masked.nonzero().tolist()} == expected


def test_the_other_picture_of_an_answer_is_masked_though_it_has_no_id(tmp_path, pictures) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(pictures.png(number))
    a, b = (Item("", tmp_path / name) for name in ("a.png", "b.png"))
    lessons = [lesson("red and green", a, b), lesson("green", b)]
    masked = false_negatives(lessons, *told(lessons))
    assert masked.tolist() == [[False, True], [False, False]]


def test_masked_columns_get_no_gradient() -> None:
    candidates = unit_rows(5, 3).requires_grad_()
    masked = torch.zeros(3, 5, dtype=torch.bool)
    masked[:, 4] = True
    contrast(unit_rows(3, 4), candidates, masked, torch.tensor(20.0)).loss.backward()
    assert candidates.grad is not None
    assert candidates.grad[4].abs().max() == 0
    assert candidates.grad[3].abs().max() > 0


def test_dropped_out_numbers_are_the_same_both_times() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))
    rows = unit_rows(12, 5)
    gradients = []
    for _ in range(2):
        torch.manual_seed(3)
        layer.zero_grad()
        backward(lambda some: layer(torch.stack(list(some))), list(rows), _loss_of_all, 5)
        gradients.append(layer[0].weight.grad.clone())
    torch.manual_seed(3)
    layer.zero_grad()
    chunks = [layer(rows[start : start + 5]) for start in (0, 5, 10)]
    _loss_of_all(torch.cat(chunks))[0].backward()
    assert torch.equal(*gradients)
    assert torch.allclose(gradients[0], layer[0].weight.grad, atol=1e-6)


def _loss_of_all(vectors: object) -> tuple[object, None]:
    return (vectors @ vectors.T).tanh().sum(), None  # type: ignore[attr-defined, operator]


@pytest.mark.models
def test_gradients_are_those_of_sentence_transformers(tmp_path) -> None:
    """On a tiny model, with one hard negative each; the reference is its cached loss."""
    losses = pytest.importorskip(
        "sentence_transformers.sentence_transformer.losses", reason="run `make setup-models`"
    )
    from mmesh.content import Content, Role
    from mmesh.models.encoders.families import EncoderChoice, load_family
    from mmesh.testing.tiny_models import build_tiny_sentence_transformer

    folder = build_tiny_sentence_transformer(tmp_path / "tiny")
    encoder = load_family("sentence-transformers", folder, EncoderChoice(str(folder)))
    network = encoder.network  # type: ignore[attr-defined]
    network.requires_grad_(True)
    columns = [[f"{kind} {n} harbour {'violin ' * (n % 4)}" for n in range(9)] for kind in "qpn"]
    inputs = [
        encoder.prepare(Content.of(text), Role.CANDIDATE, "") for texts in columns for text in texts
    ]

    def loss_of(vectors):
        masked = torch.zeros(9, 18, dtype=torch.bool)
        found = contrast(vectors[:9], vectors[9:], masked, torch.tensor(20.0))
        return found.loss, found

    def embed(some):
        rows = encoder.rows(encoder.collate(some)).float()
        return torch.nn.functional.normalize(rows, dim=1)

    mine = backward(embed, inputs, loss_of, 4)
    gradients = {
        name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None
    }
    network.zero_grad()
    loss = losses.CachedMultipleNegativesRankingLoss(network, scale=20.0, mini_batch_size=4)
    with torch.enable_grad():
        theirs = loss([network.preprocess(texts) for texts in columns], None)
        theirs.backward()
    assert float(mine.loss.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    compared = 0
    for name, one in network.named_parameters():
        if one.grad is not None:
            assert torch.allclose(gradients[name], one.grad, atol=1e-5), name
            compared += one.grad.abs().max() > 1e-4
    assert compared > 5
