import numpy as np
import pytest
from numpy.typing import NDArray

from gsec_core.text import nouns as module
from gsec_core.text.nouns import assigned_nouns, best_nouns, centre_count, cluster_weights, noun_counterparts, select_nouns

from ..planted import planted


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def space() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """200 images, 500 nouns and 20 centres."""
    random = np.random.default_rng(0)
    return unit(random.standard_normal((200, 32))), unit(random.standard_normal((500, 32))), unit(random.standard_normal((20, 32)))


def reference(nouns: NDArray[np.float32], centres: NDArray[np.float32], per_centre: int) -> dict[int, list[int]]:
    """Softmax over all centres at temperature 1; of each centre the nouns that it has most of, the best first."""
    cosines = nouns.astype(np.float64) @ centres.T.astype(np.float64)
    p = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
    of = {centre: np.flatnonzero(p.argmax(1) == centre) for centre in range(len(centres))}
    return {centre: here[np.argsort(-p[here, centre])][:per_centre].tolist() for centre, here in of.items() if len(here)}


@pytest.mark.parametrize("blocks", [(1, 1), (7, 3), (500, 256)])
def test_selection_is_that_of_the_dense_softmax_whatever_the_blocks(
    space: tuple[NDArray[np.float32], ...], blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nouns, centres = space
    monkeypatch.setattr(module, "_NOUN_ROWS", blocks[0])
    monkeypatch.setattr(module, "_CENTRE_ROWS", blocks[1])
    found = best_nouns(nouns, centres, 5)
    ours: dict[int, list[int]] = {}
    for noun, centre, rank in zip(found.noun, found.centre, found.rank, strict=True):
        assert rank == len(ours.setdefault(int(centre), []))
        ours[int(centre)].append(int(noun))
    assert ours == reference(nouns, centres, 5)


def test_scores_are_logs_of_the_softmax(space: tuple[NDArray[np.float32], ...]) -> None:
    _, nouns, centres = space
    cosines = nouns @ centres.T
    _, scores = assigned_nouns(nouns, centres)
    assert scores == pytest.approx((cosines - np.log(np.exp(cosines).sum(1, keepdims=True))).max(1), abs=1e-6)


def test_counterparts_are_softmax_means_and_tau_leads_from_the_nearest_noun_to_the_mean(space: tuple[NDArray[np.float32], ...]) -> None:
    X, nouns, _ = space
    logits = X.astype(np.float64) @ nouns.T / 0.05
    weights = np.exp(logits - logits.max(1, keepdims=True))
    expected = unit((weights / weights.sum(1, keepdims=True)) @ nouns)
    assert noun_counterparts(X, nouns, 0.05) == pytest.approx(expected, abs=1e-3)
    assert noun_counterparts(X, nouns, 1e-6) == pytest.approx(nouns[(X @ nouns.T).argmax(1)], abs=1e-5)
    assert noun_counterparts(X, nouns, 1e6) == pytest.approx(np.tile(unit(nouns.mean(0, keepdims=True)), (200, 1)), abs=1e-3)


def test_neither_the_order_of_nouns_nor_doubled_ones_matter(space: tuple[NDArray[np.float32], ...]) -> None:
    _, nouns, centres = space
    kept = set(best_nouns(nouns, centres).noun.tolist())
    order = np.random.default_rng(1).permutation(500)
    assert {int(order[noun]) for noun in best_nouns(nouns[order], centres).noun} == kept
    doubled = best_nouns(np.vstack([nouns, nouns[::-1]]), centres)
    assert set(doubled.noun.tolist()) == kept, "of equal vectors the first"


def test_the_order_of_images_and_of_centres_does_not_matter(space: tuple[NDArray[np.float32], ...]) -> None:
    X, nouns, centres = space
    order = np.random.default_rng(1).permutation(20)
    assert set(best_nouns(nouns, centres[order]).noun.tolist()) == set(best_nouns(nouns, centres).noun.tolist())
    rows = np.random.default_rng(2).permutation(200)
    assert noun_counterparts(X[rows], nouns) == pytest.approx(noun_counterparts(X, nouns)[rows], abs=1e-6)


def test_nouns_of_every_class_are_selected_and_more_than_by_chance() -> None:
    X, nouns, _ = planted()
    kept = select_nouns(X, nouns, 8).noun
    assert (kept < 80).mean() > 0.35, "the first 80 of 400 are about classes"
    assert set(kept[kept < 80] // 10) == set(range(8)), "of each"


PUBLISHED = [(50_000, 10, 167), (5_000, 10, 17), (13_000, 10, 43), (19_500, 15, 65), (1_281_167, 1000, 4271)]


@pytest.mark.parametrize(("n", "clusters", "count"), [*PUBLISHED, (500, 10, 30), (12, 3, 6), (2, 2, 1)])
def test_there_are_as_many_centres_as_published(n: int, clusters: int, count: int) -> None:
    assert centre_count(n, clusters) == count


def test_weights_tell_clusters_apart_by_their_nouns() -> None:
    X, nouns, y = planted()
    weights = cluster_weights(X, y, 9, nouns[:80], 0.02)
    assert (weights.argmax(1)[:8] // 10).tolist() == list(range(8))
    assert not weights[8].any(), "a cluster without images has none"
    logits = X.astype(np.float64) @ nouns[:80].T / 0.02
    dense = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert weights[3] == pytest.approx(dense[y == 3].mean(0) - dense.mean(0), abs=1e-4)
