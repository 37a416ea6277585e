"""Square and the boundary attack on toys whose best adversarial images are known exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from export.audit.black_box import AIMS, Answers, Ask, Found, boundary, distances, loss, margin, reached, square

SIZE, EPS = 6, 8
NONE = np.zeros(1, np.int64)


@dataclass
class Linear:
    """Two classes; the right one leads by weight . x + bias; the score rises with what x does along another direction.

    The smallest lead in a ball that touches neither 0 nor 255 is that of x minus eps times the L1 norm of the weight.
    """

    bias: float = 0.0
    limit: float = 1.0
    weight: np.ndarray = field(default_factory=lambda: np.random.default_rng(1).normal(0, 1, 3 * SIZE * SIZE))
    of_score: np.ndarray = field(default_factory=lambda: np.zeros(3 * SIZE * SIZE))
    asked: list[np.ndarray] = field(default_factory=list)

    def __call__(self, images: np.ndarray) -> Answers:
        assert images.dtype == np.uint8
        self.asked.append(images.copy())
        flat = images.reshape(len(images), -1).astype(np.float64)
        right = flat @ self.weight + self.bias
        score = 1 / (1 + np.exp(-(flat - 128) @ self.of_score))
        return Answers(np.stack([right, np.zeros(len(images))], axis=1), score, np.full(len(images), self.limit))

    @property
    def queries(self) -> int:
        return sum(map(len, self.asked))

    def drop(self, eps: int) -> float:
        """How far the lead falls at most."""
        return eps * float(np.abs(self.weight).sum())


def grey(count: int = 1, seed: int = 0) -> np.ndarray:
    """Images far from 0 and 255."""
    return np.random.default_rng(seed).integers(100, 156, (count, 3, SIZE, SIZE)).astype(np.uint8)


def lead(toy: Linear, images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) @ toy.weight + toy.bias


def attack(toy: Ask, images: np.ndarray, aim: str = "class", queries: int = 3000, seed: int = 0) -> Found:
    labels = np.zeros(len(images), np.int64)
    return square(toy, images, labels, aim, eps=EPS, queries=queries, rng=np.random.default_rng(seed))


def random_search(toy: Linear, image: np.ndarray, queries: int) -> float:
    """The least lead among random corners of the ball."""
    signs = np.random.default_rng(5).integers(0, 2, (queries, *image.shape)) * 2 - 1
    return float(lead(toy, image + EPS * signs).min())


def test_square_reaches_the_optimum_of_a_linear_network() -> None:
    """A network that is lost only within one per cent of the largest possible drop is lost."""
    image = grey()
    toy = Linear()
    toy.bias = 0.99 * toy.drop(EPS) - float(lead(toy, image)[0])
    found = attack(toy, image)
    assert found.broken.all()
    assert margin(Linear(bias=toy.bias)(found.images), NONE)[0] > 0
    toy.bias += 0.02 * toy.drop(EPS)  # and one that cannot be lost is not
    assert not attack(toy, image).broken.any()


def test_square_finds_at_least_what_random_search_finds() -> None:
    """With as many queries, on networks that neither breaks."""
    image = grey()
    for seed in range(5):
        toy = Linear(bias=1e6, weight=np.random.default_rng(seed).normal(0, 1, 3 * SIZE * SIZE))
        found = attack(toy, image, queries=300, seed=seed)
        assert lead(toy, found.images)[0] <= random_search(toy, image[0], 300)


@pytest.mark.parametrize("aim", AIMS)
def test_no_image_that_square_asks_leaves_the_ball(aim: str) -> None:
    """Nor the values that a pixel can have; images touch 0 and 255 here."""
    images = np.random.default_rng(3).integers(0, 256, (3, 3, SIZE, SIZE)).astype(np.uint8)
    images[0] = 255
    toy = Linear(bias=1e6, limit=0.4)
    found = attack(toy, images, aim, queries=200)
    for asked in [*toy.asked, found.images]:
        assert np.abs(asked.astype(int) - images).max() <= EPS


def test_each_query_is_counted_and_none_is_asked_of_a_broken_image() -> None:
    """One image is lost as it is, one soon, one never."""
    toy = Linear()
    towards = np.sign(toy.weight).reshape(3, SIZE, SIZE).astype(int)
    images = np.concatenate([grey() + move * towards for move in (-20, 0, 20)]).astype(np.uint8)
    toy.bias = 0.05 * toy.drop(EPS) - float(lead(toy, images)[1])
    found = attack(toy, images, queries=120)
    assert toy.queries == found.queries.sum()
    assert found.broken.tolist() == [True, True, False]
    assert found.queries[0] == 1 and 1 < found.queries[1] < 120 and found.queries[2] == 120


def test_the_best_iterate_is_what_comes_back() -> None:
    """No image that was asked was nearer to the aim; the image itself is one of those."""
    images = grey()
    toy = Linear(bias=1e5, limit=0.5, of_score=np.random.default_rng(2).normal(0, 0.1, 3 * SIZE * SIZE))
    found = attack(toy, images, "evasion", queries=400)
    losses = [float(loss(toy(asked), NONE, "evasion")[0]) for asked in list(toy.asked)]
    assert float(loss(toy(found.images), NONE, "evasion")[0]) == min(losses)


def test_evasion_is_a_wrong_class_under_the_limit() -> None:
    """Where the score rises with the way to the wrong class, the class alone is reached and the verdict is not; where
    it does not, both are."""
    image = grey()
    toy = Linear(limit=0.5)
    toy.bias = 0.5 * toy.drop(EPS) - float(lead(toy, image)[0])
    level = (image.reshape(-1).astype(float) - 128) @ toy.weight
    toy.of_score, toy.limit = -toy.weight, 1 / (1 + np.exp(level - 1))
    assert attack(toy, image, "class").broken.all()
    held = attack(toy, image, "evasion", queries=500)
    assert not held.broken.any() and (held.queries == 500).all()
    toy.of_score = toy.weight
    toy.limit = 1 / (1 + np.exp(-level))
    found = attack(toy, image, "evasion")
    assert found.broken.all()
    answers = toy(found.images)
    assert margin(answers, NONE)[0] > 0 and answers.score[0] <= answers.limit[0]


def test_a_tie_is_no_success() -> None:
    """Two classes that read the same to a client."""
    tied = Answers(np.zeros((1, 2)), np.zeros(1), np.ones(1))
    assert [bool(reached(tied, np.array([label]), "class")[0]) for label in (0, 1)] == [False, False]


def pair(toy: Linear) -> np.ndarray:
    """A natural image and one that is far away, of the other class where the lead falls by more than 40 levels."""
    image, rng = grey(), np.random.default_rng(6)
    away = np.where(rng.random(toy.weight.shape) < 0.7, -np.sign(toy.weight), np.sign(toy.weight))
    other = image + 90 * away.reshape(image.shape).astype(int)
    return np.concatenate([image, other]).astype(np.uint8)


def test_the_boundary_attack_comes_near_the_nearest_image_of_another_class() -> None:
    """The nearest one of a linear network is known; more queries come no further from it."""
    toy = Linear()
    images = pair(toy)
    toy.bias = 10.5 * toy.drop(1) - float(lead(toy, images)[0])  # lost from 11 levels on
    reach = []
    for queries in (30, 300, 3000):
        toy.asked.clear()
        found = boundary(toy, images, np.array([0, 1]), "class", queries=queries, rng=np.random.default_rng(0))
        assert found.broken.all() and lead(toy, found.images)[0] < 0
        assert toy.queries == found.queries.sum() and found.queries.max() <= queries
        reach.append(float(distances(images, found.images)[0][0]))
    assert reach == sorted(reach, reverse=True) and reach[-1] != reach[0]
    assert 11 <= reach[-1] <= 13


def test_the_boundary_attack_sees_decisions_only() -> None:
    """Other margins and scores that mean the same class and verdict change nothing."""
    toy = Linear(limit=0.5, of_score=np.random.default_rng(4).normal(0, 0.01, 3 * SIZE * SIZE))
    images = pair(toy)
    toy.bias = 20 * toy.drop(1) - float(lead(toy, images)[0])

    def verdicts(asked: np.ndarray) -> Answers:
        answers = toy(asked)
        return Answers(np.sign(answers.logits), (answers.score > answers.limit) * 1.0, answers.limit)

    for aim in AIMS:
        full, few = (
            boundary(ask, images, np.array([0, 1]), aim, queries=400, rng=np.random.default_rng(0))
            for ask in (toy, verdicts)
        )
        assert np.array_equal(full.images, few.images)


def test_the_boundary_attack_without_a_start_asks_once() -> None:
    """Nothing to start from is no success; an image that is wrong already is one, at distance 0."""
    images = grey(2)
    toy = Linear(bias=1e6)
    found = boundary(toy, images, np.array([0, 0]), "class", queries=100, rng=np.random.default_rng(0))
    assert not found.broken.any() and found.queries.tolist() == [1, 1] and toy.queries == 2
    found = boundary(toy, images, np.array([1, 1]), "class", queries=100, rng=np.random.default_rng(0))
    assert found.broken.all() and distances(images, found.images)[0].tolist() == [0, 0]
