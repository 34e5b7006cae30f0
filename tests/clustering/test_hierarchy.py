"""The tree over clusters, on clusters that belong to known families."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gsec_core.clustering import hierarchy
from gsec_core.clustering.hierarchy import co_association, cut, tree, walk
from gsec_core.clustering.kmeans import unit_rows

FAMILIES, OF_A_FAMILY = 4, 5


def centres(dimensions: int = 32) -> NDArray[np.float32]:
    """Centres of the clusters of four families, in random order."""
    random = np.random.default_rng(0)
    of_families = np.repeat(random.normal(size=(FAMILIES, dimensions)), OF_A_FAMILY, axis=0)
    found: NDArray[np.float32] = unit_rows(of_families + 0.4 * random.normal(size=of_families.shape) + 3)
    return found[shuffled()]


def shuffled() -> NDArray[np.int64]:
    return np.random.default_rng(1).permutation(FAMILIES * OF_A_FAMILY)


def families(groups: list[list[int]]) -> list[set[int]]:
    return [{int(shuffled()[cluster]) // OF_A_FAMILY for cluster in group} for group in groups]


def groups_of(merges: list[tuple[int, int]], clusters: int, groups: int) -> list[list[int]]:
    return list(cut(merges, clusters, groups).values())


def test_a_cut_of_the_tree_finds_the_families_although_all_centres_share_a_direction() -> None:
    found = tree(centres(), np.eye(20, dtype=np.float32), np.full(20, 7))
    groups = groups_of([merge[:2] for merge in found], 20, FAMILIES)
    assert sorted(map(len, groups)) == [OF_A_FAMILY] * FAMILIES
    assert all(len(family) == 1 for family in families(groups))


def test_the_tree_follows_the_members_where_centres_show_no_families() -> None:
    random = np.random.default_rng(2)
    far = unit_rows(random.normal(size=(20, 200)))
    labels = np.repeat(np.arange(20, dtype=np.int32), 30)
    # Members that put each image into a random cluster of its family.
    members = np.stack([OF_A_FAMILY * (labels // OF_A_FAMILY) + random.integers(0, OF_A_FAMILY, len(labels)) for _ in range(3)], axis=1).astype(np.int32)
    found = tree(far, co_association(labels, members, 20), np.full(20, 30))
    for group in groups_of([merge[:2] for merge in found], 20, FAMILIES):
        assert len({cluster // OF_A_FAMILY for cluster in group}) == 1


def test_co_association_is_the_normalised_mean_over_pairs_of_images() -> None:
    random = np.random.default_rng(3)
    labels, members = random.integers(0, 4, 60).astype(np.int32), random.integers(0, 4, (60, 3)).astype(np.int32)
    labels[labels == 2] = 1  # a cluster without images
    together = co_association(labels, members, 4)

    def pairs(one: int, other: int) -> float:
        return float(np.mean([(members[a] == members[b]).mean() for a in np.flatnonzero(labels == one) for b in np.flatnonzero(labels == other)]))

    for one, other in ((0, 1), (1, 3), (0, 3)):
        assert together[one, other] == pytest.approx(pairs(one, other) / (pairs(one, one) * pairs(other, other)) ** 0.5, rel=1e-5)
        assert together[one, other] == pytest.approx(together[other, one])
    assert together[2].tolist() == [0, 0, 1, 0]


def test_the_tree_does_not_depend_on_the_order_of_clusters() -> None:
    rows, order = centres(), np.random.default_rng(4).permutation(20)
    straight, turned = (tree(some, np.eye(20, dtype=np.float32), np.full(20, 7)) for some in (rows, rows[order]))
    for groups in (2, 5, 11):
        one = {frozenset(group) for group in groups_of([merge[:2] for merge in straight], 20, groups)}
        other = {frozenset(int(order[cluster]) for cluster in group) for group in groups_of([merge[:2] for merge in turned], 20, groups)}
        assert one == other


def test_equal_and_empty_clusters_have_a_tree_too() -> None:
    found = tree(np.ones((3, 4), np.float32) / 2, np.eye(3, dtype=np.float32), np.array([5, 0, 0]))
    assert len(found) == 2
    assert all(np.isfinite(merge.height) for merge in found)


def test_one_cluster_or_too_many_have_no_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tree(np.ones((1, 4), np.float32), np.eye(1, dtype=np.float32), np.array([5])) == []
    monkeypatch.setattr(hierarchy, "MOST_CLUSTERS", 19)
    assert tree(centres(), np.eye(20, dtype=np.float32), np.full(20, 7)) == []


def test_every_cut_has_the_requested_number_of_groups_and_refines_the_coarser_one() -> None:
    merges = [merge[:2] for merge in tree(centres(), np.eye(20, dtype=np.float32), np.full(20, 7))]
    before = [list(range(20))]
    for groups in range(1, 21):
        now = groups_of(merges, 20, groups)
        assert len(now) == groups
        assert sorted(cluster for group in now for cluster in group) == list(range(20))
        assert all(any(set(group) <= set(wider) for wider in before) for group in now)
        before = now


def test_a_walk_visits_every_cluster_once_and_opens_no_more_than_the_deepest_level() -> None:
    clusters = 3_000
    merges = [(clusters + place - 1 if place else 0, place + 1) for place in range(clusters - 1)]
    steps = list(walk(merges, [1] * clusters + list(range(2, clusters + 1)), deepest=5))
    assert sorted(number for step, number, _ in steps if step == "leaf") == list(range(clusters))
    assert [step for step, _, _ in steps if step != "leaf"] == ["open"] * 5 + ["close"] * 5
    assert max(level for _, _, level in steps) == 5
