"""The choice of the images that a report shows, and their places on the map."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.report import layout
from gsec_core.report.layout import LEAST_CONFIDENT, MOST_CONFIDENT, REPRESENTATIVE, SAMPLE, choose, place


def made(sizes: list[int], seed: int = 0) -> dict[str, Any]:
    """Arguments of `choose` for random images of clusters of these sizes, in random order."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = random.random((2, len(labels)), np.float32)
    nothing = np.zeros(len(labels), bool)
    return {"labels": labels, "confidence": values[0], "centrality": values[1], "described": nothing, "distinct": ~nothing, "n_clusters": len(sizes)}


def test_a_cluster_shows_its_most_central_its_surest_and_its_least_sure_images() -> None:
    images = made([40, 60])
    shown = choose(**images)
    for cluster in (0, 1):
        here = shown.filter(cluster=cluster)
        representatives = here.filter(role=REPRESENTATIVE)["row"].to_numpy()
        most_central = np.flatnonzero(images["labels"] == cluster)
        most_central = most_central[np.argsort(-images["centrality"][most_central])][: layout.PER_ROLE]
        assert representatives.tolist() == most_central.tolist(), "the most central must be first"
        left = np.setdiff1d(here["row"].to_numpy(), representatives)
        surest = here.filter(role=MOST_CONFIDENT)["row"].to_numpy()
        assert surest[0] == left[np.argmax(images["confidence"][left])]
        assert here.filter(role=LEAST_CONFIDENT)["row"][0] == left[np.argmin(images["confidence"][left])]


def test_described_images_come_first_among_the_representatives() -> None:
    images = made([40, 60])
    images["described"][[7, 70]] = True
    shown = choose(**images)
    for row in (7, 70):
        here = shown.filter(cluster=images["labels"][row], role=REPRESENTATIVE)["row"].to_list()
        assert row in here[:2]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_no_image_is_chosen_twice_and_never_more_than_the_limit(sizes: list[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MOST", most)
        shown = choose(**made(sizes))
    assert shown["row"].is_unique().all()
    assert len(shown) == min(most, sum(sizes))
    if len(sizes) <= most:
        assert {*shown["cluster"]} == {cluster for cluster, size in enumerate(sizes) if size}, "every cluster that is not empty must be seen"


def test_the_sample_is_drawn_in_proportion_to_the_remaining_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST", 136)
    drawn = choose(**made([1018, 318])).filter(role=SAMPLE)["cluster"].value_counts(sort=True)
    assert drawn["count"].to_list() == [77, 23]  # 1,000 and 300 images remain for 100 places


def test_of_images_with_equal_bytes_only_one_is_chosen() -> None:
    images = made([10, 10])
    images["distinct"][5:] = False
    assert sorted(choose(**images)["row"]) == list(range(5))


def test_the_choice_is_the_same_at_every_call() -> None:
    assert choose(**made([2000, 9000])).equals(choose(**made([2000, 9000])))


def test_neighbours_stay_together_on_the_map() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(0, 10, (3, 20))
    points = place(np.concatenate([centre + random.normal(0, 1, (30, 20)) for centre in centres]).astype(np.float16))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(1) // 30 == np.arange(90) // 30).all()
    assert points.min() >= 0
    assert points.max() <= 1


def test_identical_images_have_the_same_place_on_the_map() -> None:
    assert (place(np.ones((50, 8), np.float16)) == 0.5).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 11])
def test_a_map_of_few_images_has_finite_places(rows: int) -> None:
    points = place(np.eye(20, dtype=np.float16)[:rows])
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()
