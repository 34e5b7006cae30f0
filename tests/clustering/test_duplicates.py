"""Which images count as copies of each other, and groups of copies, on planted data."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gsec_core.clustering import duplicates
from gsec_core.clustering.duplicates import FARTHER, Likeness, grouped, groups, pairs
from gsec_core.clustering.neighbors import neighbors_of

THRESHOLD = 0.9


def noise(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Small pictures of noise, all different."""
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), np.uint8)


def on_a_circle(degrees: NDArray[np.float64], pixels: NDArray[np.uint8] | None = None) -> Likeness:
    """A `Likeness` of two-dimensional embeddings at these angles."""
    radians = np.radians(degrees)
    X = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float16)
    return Likeness(X, noise(len(X)) if pixels is None else pixels, THRESHOLD)


def found(like: Likeness, rank: NDArray[np.int64], k: int = 3) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first image of each row's group and the cosine to it, found by ``k`` neighbours."""

    def search(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows[neighbors_of(lambda places: like.X[rows[places]], len(rows), np.arange(len(rows)), min(k, len(rows) - 1))]

    numbers = np.arange(len(rank))
    return grouped(like, [(numbers, search(numbers))], search, rank)


def test_copies_are_grouped_around_the_one_of_the_best_rank_and_others_are_alone() -> None:
    like = on_a_circle(np.array([0, 10, 90, 100, 104, 180, 270]))
    first, cosine = found(like, np.array([1, 0, 2, 4, 3, 5, 6]))
    assert first.tolist() == [1, 1, 2, 2, 2, 5, 6]
    assert cosine == pytest.approx(np.cos(np.radians([10, 0, 0, 10, 14, 0, 0])), abs=2e-3)


def test_groups_do_not_depend_on_the_order_of_images() -> None:
    like = on_a_circle(np.array([0, 10, 20, 120, 130, 240]))
    rank = np.array([3, 0, 1, 5, 4, 2])
    first, _ = found(like, rank)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(6)
        again, _ = found(Likeness(like.X[order], like.pixels[order], THRESHOLD), rank[order])
        assert order[again].tolist() == first[order].tolist()


def test_a_lower_cosine_is_enough_if_the_pixels_are_similar() -> None:
    pixels = noise(4)
    pixels[1] = np.clip(pixels[0] // 2 + 20, 0, 255)  # darker and with less contrast
    pixels[2:] = 7  # pictures of a single colour are no evidence
    lower = np.degrees(np.arccos(1 - FARTHER * (1 - THRESHOLD) + 0.02))
    a, b = np.array([0, 0, 2]), np.array([1, 2, 3])
    like = on_a_circle(np.array([0, lower, -lower, -2 * lower]), pixels)
    assert like.same(a, b, like.cosines(a, b)).tolist() == [True, False, False]
    farther = on_a_circle(np.array([0, lower + 5, 0, 0]), pixels)
    assert not farther.same(a[:1], b[:1], farther.cosines(a[:1], b[:1])).any(), "if embeddings are far apart, pixels must not be compared"


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_chain_of_similar_images_is_cut_into_groups_that_are_all_like_their_first(shuffled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a film, each image is like the next, but the last is not like the first."""
    n, step = 3000, 0.1
    degrees = np.arange(n) * step
    order = np.random.default_rng(0).permutation(n)  # the order of content hashes
    rank = np.random.default_rng(1).permutation(n) if shuffled else order
    like = on_a_circle(degrees[order])
    rounds, components = [], duplicates.connected_components
    monkeypatch.setattr(duplicates, "connected_components", lambda *args, **options: rounds.append(1) or components(*args, **options))
    first, cosine = found(like, rank, k=6)
    assert len(rounds) < 40, "it takes log(n) rounds, not n"
    assert cosine.min() >= THRESHOLD
    assert (rank[first] <= rank).all()
    assert cosine == pytest.approx(like.cosines(np.arange(n), first), abs=1e-3)
    sizes = np.bincount(first)
    assert 6 <= (sizes > 0).sum() <= 40, "a group can reach 26 degrees to each side of its first, of 300 in all"


def test_many_copies_are_one_group_although_each_is_searched_with_few_neighbours() -> None:
    random = np.random.default_rng(0)
    like = on_a_circle(random.uniform(0, 10, 400))
    rank = random.permutation(400)
    first, _ = found(like, rank, k=8)
    assert (first == rank.argmin()).all()


def test_without_pairs_each_image_is_its_own_first() -> None:
    like = on_a_circle(np.array([0, 120, 240]))
    first, cosine = found(like, np.arange(3), k=2)
    assert first.tolist() == [0, 1, 2]
    assert cosine.tolist() == [1, 1, 1]
    assert groups(like, np.empty((0, 2), np.int64), np.arange(3))[0].tolist() == [0, 1, 2]
    none = pairs(like, np.arange(3), np.full((3, 2), -1, np.int32))
    assert none.shape == (0, 2)
