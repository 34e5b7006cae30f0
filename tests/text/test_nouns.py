import numpy as np
import pytest
from numpy.typing import NDArray

from gsec_core.text import DISTINCT, NounSelection
from gsec_core.text import nouns as module
from gsec_core.text.nouns import assigned_nouns, centre_count, cluster_weights, kept_nouns, nearest_nouns, noun_counterparts, select_nouns

from ..planted import planted


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def space() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Random unit vectors of 200 images, 500 nouns and 20 centres."""
    random = np.random.default_rng(0)
    return unit(random.standard_normal((200, 32))), unit(random.standard_normal((500, 32))), unit(random.standard_normal((20, 32)))


def counterparts(X: NDArray[np.float32], nouns: NDArray[np.float32], tau: float = 0.005) -> NDArray[np.float32]:
    return np.concatenate(list(noun_counterparts(X, nouns, NounSelection(tau=tau))))


def reference(nouns: NDArray[np.float32], centres: NDArray[np.float32], per_centre: int) -> dict[int, list[int]]:
    """For each centre, its best nouns by a softmax over all centres at temperature 1, the best first."""
    cosines = nouns.astype(np.float64) @ centres.T.astype(np.float64)
    p = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
    of = {centre: np.flatnonzero(p.argmax(1) == centre) for centre in range(len(centres))}
    return {centre: here[np.argsort(-p[here, centre])][:per_centre].tolist() for centre, here in of.items() if len(here)}


@pytest.mark.parametrize("blocks", [(1, 1), (7, 3), (500, 256)])
def test_the_selection_equals_that_of_the_dense_softmax_for_any_size_of_blocks(
    space: tuple[NDArray[np.float32], ...], blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nouns, centres = space
    monkeypatch.setattr(module, "_NOUN_ROWS", blocks[0])
    monkeypatch.setattr(module, "_CENTRE_ROWS", blocks[1])
    found = kept_nouns(nouns, centres, DISTINCT)
    ours: dict[int, list[int]] = {}
    for noun, centre, rank in zip(found.noun, found.centre, found.rank, strict=True):
        assert rank == len(ours.setdefault(int(centre), []))
        ours[int(centre)].append(int(noun))
    assert ours == reference(nouns, centres, 5)


def test_scores_of_nouns_are_logarithms_of_the_softmax(space: tuple[NDArray[np.float32], ...]) -> None:
    _, nouns, centres = space
    cosines = nouns @ centres.T
    _, scores = assigned_nouns(nouns, centres)
    assert scores == pytest.approx((cosines - np.log(np.exp(cosines).sum(1, keepdims=True))).max(1), abs=1e-6)


def test_counterparts_are_softmax_means_between_the_nearest_noun_and_the_mean_by_tau(space: tuple[NDArray[np.float32], ...]) -> None:
    X, nouns, _ = space
    logits = X.astype(np.float64) @ nouns.T / 0.05
    weights = np.exp(logits - logits.max(1, keepdims=True))
    expected = unit((weights / weights.sum(1, keepdims=True)) @ nouns)
    assert counterparts(X, nouns, 0.05) == pytest.approx(expected, abs=1e-3)
    assert counterparts(X, nouns, 1e-6) == pytest.approx(nouns[(X @ nouns.T).argmax(1)], abs=1e-5)
    assert counterparts(X, nouns, 1e6) == pytest.approx(np.tile(unit(nouns.mean(0, keepdims=True)), (200, 1)), abs=1e-3)


def test_the_selection_does_not_depend_on_the_order_of_nouns_or_on_doubled_ones(space: tuple[NDArray[np.float32], ...]) -> None:
    _, nouns, centres = space
    kept = set(kept_nouns(nouns, centres, DISTINCT).noun.tolist())
    order = np.random.default_rng(1).permutation(500)
    assert {int(order[noun]) for noun in kept_nouns(nouns[order], centres, DISTINCT).noun} == kept
    doubled = kept_nouns(np.vstack([nouns, nouns[::-1]]), centres, DISTINCT)
    assert set(doubled.noun.tolist()) == kept, "of equal vectors the first must be kept"


def test_selection_and_counterparts_do_not_depend_on_the_order_of_centres_and_images(space: tuple[NDArray[np.float32], ...]) -> None:
    X, nouns, centres = space
    order = np.random.default_rng(1).permutation(20)
    assert set(kept_nouns(nouns, centres[order], DISTINCT).noun.tolist()) == set(kept_nouns(nouns, centres, DISTINCT).noun.tolist())
    rows = np.random.default_rng(2).permutation(200)
    assert counterparts(X[rows], nouns) == pytest.approx(counterparts(X, nouns)[rows], abs=1e-5)


def test_nouns_of_every_class_are_selected_more_often_than_by_chance() -> None:
    X, nouns, _ = planted()
    kept = select_nouns(X, nouns, 8).noun
    assert (kept < 80).mean() > 0.35, "the first 80 of 400 are about classes"
    assert set(kept[kept < 80] // 10) == set(range(8)), "nouns of each class must be selected"


@pytest.mark.parametrize("blocks", [(1, 1), (7, 3), (500, 256)])
@pytest.mark.parametrize("count", [1, 30, 500])
def test_nearest_nouns_equal_those_of_a_full_sort_for_any_size_of_blocks(
    space: tuple[NDArray[np.float32], ...], count: int, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nouns, centres = space
    monkeypatch.setattr(module, "_NOUN_ROWS", blocks[0])
    monkeypatch.setattr(module, "_CENTRE_ROWS", blocks[1])
    expected = np.argsort(-(centres.astype(np.float64) @ nouns.T.astype(np.float64)), axis=1)[:, :count]
    assert np.array_equal(nearest_nouns(nouns, centres, count), expected)
    assert np.array_equal(nearest_nouns(nouns, 3 * centres, count), expected), "centres may have any length"


def test_a_doubled_noun_is_only_once_among_the_nearest(space: tuple[NDArray[np.float32], ...]) -> None:
    _, nouns, centres = space
    doubled = np.vstack([nouns, nouns[::-1]])
    assert np.array_equal(nearest_nouns(doubled, centres, 30), nearest_nouns(nouns, centres, 30)), "only the first of equal vectors counts"
    assert nearest_nouns(doubled, centres, 2000).shape == (20, 500), "if there are fewer nouns, all are nearest"


def test_nouns_near_a_centre_are_kept_unless_they_are_similar_to_the_mean_noun(space: tuple[NDArray[np.float32], ...]) -> None:
    _, nouns, centres = space
    common = nouns.mean(0) / np.linalg.norm(nouns.mean(0))
    nouns = unit(nouns + np.linspace(0, 2, 500)[:, None] * common)
    far = nouns @ unit(nouns.mean(0, keepdims=True))[0] < 0.9
    allowed = np.flatnonzero(far)
    expected = np.unique([allowed[np.argsort(-(nouns[allowed] @ centre))[:12]] for centre in centres])
    found = kept_nouns(nouns, centres, NounSelection(per_centre=12, nearest=True, unlike=0.1))
    assert 0 < far.sum() < 500
    assert np.array_equal(np.sort(found.noun), expected)
    assert np.array_equal(found.centre, (nouns[found.noun] @ centres.T).argmax(1))
    everything = kept_nouns(nouns, centres, NounSelection(per_centre=600, nearest=True))
    assert np.array_equal(np.sort(everything.noun), np.arange(500))


def test_names_are_all_kept_in_order_without_doubled_ones(space: tuple[NDArray[np.float32], ...]) -> None:
    X, nouns, _ = space
    assert np.array_equal(select_nouns(X, nouns, 500, NounSelection()).noun, np.arange(500))
    assert len(select_nouns(X, np.vstack([nouns, nouns[:3]]), 503, NounSelection()).noun) == 500, "a doubled name must be kept only once"


PUBLISHED = [(50_000, 10, 167), (5_000, 10, 17), (13_000, 10, 43), (19_500, 15, 65), (1_281_167, 1000, 4271)]


@pytest.mark.parametrize(("n", "clusters", "count"), [*PUBLISHED, (500, 10, 30), (12, 3, 6), (2, 2, 1)])
def test_the_number_of_centres_is_the_published_one(n: int, clusters: int, count: int) -> None:
    assert centre_count(n, clusters, 300) == count


def test_weights_give_each_cluster_its_distinctive_nouns() -> None:
    X, nouns, y = planted()
    weights = cluster_weights(X, y, 9, nouns[:80], 0.02)
    assert (weights.argmax(1)[:8] // 10).tolist() == list(range(8))
    assert not weights[8].any(), "a cluster without images must have no weights"
    logits = X.astype(np.float64) @ nouns[:80].T / 0.02
    dense = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert weights[3] == pytest.approx(dense[y == 3].mean(0) - dense.mean(0), abs=1e-4)
