"""Lineage: which new cluster continues which earlier one, and so inherits its key."""

import numpy as np
import polars as pl
import pytest

from gsec_core.clustering import lineage


def shared(table: list[list[int]]) -> pl.DataFrame:
    """A contingency table (older, newer) as `inherit` takes it."""
    rows = [(old, new, count) for old, row in enumerate(table) for new, count in enumerate(row) if count]
    return pl.DataFrame(rows, schema={"previous": pl.Int32, "cluster": pl.Int32, "images": pl.Int64}, orient="row")


def inherit(table: list[list[int]], keys: list[int], next_key: int) -> lineage.Lineage:
    return lineage.inherit(shared(table), len(table[0]), np.array(keys, np.int32), next_key)


def test_the_first_clustering_gives_keys_in_order() -> None:
    found = lineage.first(3)
    assert found.keys.tolist() == [0, 1, 2]
    assert found.previous.tolist() == [-1] * 3
    assert found.common.sum() == found.moved.sum() == 0


def test_keys_follow_the_images_and_not_the_numbers_of_clusters() -> None:
    found = inherit([[0, 90, 10], [5, 0, 95], [80, 20, 0]], keys=[4, 7, 9], next_key=12)
    assert found.keys.tolist() == [9, 4, 7]
    assert found.previous.tolist() == [2, 0, 1]
    assert found.common.tolist() == [85, 110, 105]
    assert found.moved.tolist() == [5, 20, 10]
    assert found.overlap.tolist() == pytest.approx([80 / 105, 90 / 120, 95 / 110], abs=1e-6)


def test_after_a_split_the_larger_half_inherits_the_key_and_the_other_gets_a_new_one() -> None:
    found = inherit([[60, 40, 0], [0, 0, 50]], keys=[0, 1], next_key=2)
    assert found.keys.tolist() == [0, 2, 1]
    assert found.previous.tolist() == [0, -1, 1]
    assert found.moved.tolist() == [0, 40, 0]
    assert np.isnan(found.overlap[1])


def test_a_merged_cluster_inherits_the_key_of_the_larger_one() -> None:
    found = inherit([[30, 0], [70, 0], [0, 50]], keys=[5, 6, 7], next_key=8)
    assert found.keys.tolist() == [6, 7]
    assert found.moved.tolist() == [30, 0]


def test_clusters_that_share_too_few_images_with_earlier_ones_get_new_keys() -> None:
    found = inherit([[10, 90], [90, 10]], keys=[0, 1], next_key=5)
    assert found.keys.tolist() == [1, 0]
    scattered = inherit([[20, 20, 20, 20, 20], *[[20] * 5] * 4], keys=[0, 1, 2, 3, 4], next_key=5)
    assert scattered.keys.tolist() == [5, 6, 7, 8, 9], "an overlap of a ninth is too small for a continuation"
    assert scattered.moved.sum() == scattered.common.sum() == 500


def test_pairs_with_little_overlap_do_not_replace_a_pair_with_much() -> None:
    """Two wrong pairs of .24 and .25 would have a larger sum than the right one of .41."""
    found = inherit([[100, 43, 30], [42, 0, 0], [30, 0, 200]], keys=[7, 8, 9], next_key=10)
    assert found.keys.tolist() == [7, 10, 9]
    assert found.overlap[0] == pytest.approx(100 / 245)
    assert found.moved.tolist() == [72, 43, 30]


def test_clusters_without_common_images_get_new_keys() -> None:
    found = lineage.inherit(shared([[0, 0]]), 2, np.array([0], np.int32), 1)
    assert found.keys.tolist() == [1, 2]
    assert found.common.tolist() == [0, 0]


def test_a_cluster_of_a_model_trained_further_keeps_its_key_although_all_its_images_are_gone() -> None:
    table = shared([[50, 0, 0, 10], [0, 0, 0, 0], [0, 0, 0, 60], [0, 0, 0, 0]])
    found = lineage.inherit(table, 4, np.array([3, 5, 6, 8], np.int32), 9, same_numbers=True)
    assert found.keys.tolist() == [3, 5, 9, 6], "cluster 2 is new, because the images of the older cluster 2 are in cluster 3"
    assert found.previous.tolist() == [0, 1, -1, 2]
    assert np.isnan(found.overlap[1])
    assert lineage.inherit(table, 4, np.array([3, 5, 6, 8], np.int32), 9).keys.tolist() == [3, 9, 10, 6], "other models do not keep the numbers of clusters"


def test_the_matching_of_clusters_is_optimal_and_not_greedy() -> None:
    """Taking the largest overlap first would leave the second cluster without a key."""
    found = inherit([[50, 40], [48, 0]], keys=[0, 1], next_key=2)
    assert found.keys.tolist() == [1, 0]


def test_twenty_thousand_clusters_are_matched() -> None:
    count = 20_000
    order = np.random.default_rng(0).permutation(count).astype(np.int32)
    table = pl.DataFrame({"previous": np.arange(count, dtype=np.int32), "cluster": order, "images": np.full(count, 3, np.int64)})
    found = lineage.inherit(table, count, np.arange(count, dtype=np.int32), count)
    assert np.array_equal(found.keys[order], np.arange(count))
