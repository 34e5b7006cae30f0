import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from gsec_core import GSEC
from gsec_core.clustering import kmeans, neighbors
from gsec_core.clustering.features import UnitFeatures
from gsec_core.clustering.neighbors import Built, NeighborIndex, neighbor_count, neighbors_of


def planted(n: int, d: int = 32, clusters: int = 100) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    return random.standard_normal((clusters, d), np.float32)[random.integers(0, clusters, n)] + 0.3 * random.standard_normal((n, d), np.float32)


def index_of(X: NDArray[np.float32], random_state: int = 0, built: Built | None = None) -> NeighborIndex:
    return NeighborIndex(lambda rows: X[rows], len(X), random_state=random_state, n_threads=1, built=built)


def true_neighbors(X: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The neighbours by scikit-learn, for rows without duplicates."""
    found: NDArray[np.int64] = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute").fit(X).kneighbors(X, return_distance=False)
    return found[:, 1:]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "BLOCK_ROWS", 300)


@pytest.mark.usefixtures("small_blocks")
def test_few_rows_get_their_exact_neighbors_in_order() -> None:
    X = planted(1000)
    index = index_of(X)
    assert index.recall is None
    np.testing.assert_array_equal(index.search(0, 1000, 5), true_neighbors(X, 5))


@pytest.mark.usefixtures("small_blocks")
def test_searching_a_part_of_the_rows_gives_the_same_neighbors() -> None:
    index = index_of(planted(1000))
    np.testing.assert_array_equal(index.search(250, 700, 3), index.search(0, 1000, 3)[250:700])


@pytest.mark.parametrize("copies", [2, 3, 9])
def test_duplicates_of_a_row_are_neighbors_and_the_row_itself_is_not(copies: int) -> None:
    X = np.repeat(planted(40, clusters=1), copies, axis=0)
    found = index_of(X).search(0, len(X), 3)
    assert not (found == np.arange(len(X))[:, None]).any()
    assert all(len(set(row)) == 3 for row in found.tolist()), "a neighbor occurs twice"
    twins = (found // copies == (np.arange(len(X)) // copies)[:, None]).sum(1)
    np.testing.assert_array_equal(twins, min(copies - 1, 3))


@pytest.mark.usefixtures("small_blocks")
def test_neighbors_of_some_rows_are_exact_and_in_order() -> None:
    X = planted(1000)
    numbers = np.arange(3, 1000, 7)
    np.testing.assert_array_equal(neighbors_of(lambda rows: X[rows], 1000, numbers, 5, n_threads=1), true_neighbors(X, 5)[numbers])
    with pytest.raises(ValueError, match="k = 1000"):
        neighbors_of(lambda rows: X[rows], 1000, numbers, 1000)


def test_each_of_many_duplicates_has_others_as_neighbors() -> None:
    X = np.repeat(planted(4, clusters=1), 50, axis=0)
    found = neighbors_of(lambda rows: X[rows], len(X), np.arange(len(X)), 20, n_threads=1)
    assert not (found == np.arange(len(X))[:, None]).any()
    assert all(len(set(row)) == 20 for row in found.tolist())


def test_the_length_of_a_row_does_not_matter() -> None:
    X = planted(300)
    longer = X * np.random.default_rng(1).uniform(0.1, 10, (300, 1)).astype(np.float32)
    np.testing.assert_array_equal(index_of(X).search(0, 300, 3), index_of(longer).search(0, 300, 3))


def test_an_approximate_search_finds_most_neighbors_and_recall_gives_their_share() -> None:
    X = planted(60_000)
    index = index_of(X)
    assert index.recall is not None
    assert index.recall >= 0.9
    found, sample = index.search(0, 60_000, 3), np.arange(0, 60_000, 50)
    true = NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute").fit(X).kneighbors(X[sample], return_distance=False)[:, 1:]
    share = np.mean([len(set(a) & set(b)) / 3 for a, b in zip(found[sample].tolist(), true.tolist(), strict=True)])
    assert share == pytest.approx(index.recall, abs=0.04)
    assert not (found == np.arange(60_000)[:, None]).any()


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "EXACT_ROWS", 1000)


@pytest.mark.usefixtures("few_are_many", "small_blocks")
def test_equal_seeds_give_equal_approximate_neighbors() -> None:
    X = planted(2000)
    np.testing.assert_array_equal(index_of(X).search(0, 2000, 3), index_of(X).search(0, 2000, 3))
    assert index_of(X).recall == index_of(X).recall


@pytest.mark.usefixtures("few_are_many", "small_blocks")
def test_recall_is_low_if_most_neighbors_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_PROBED_LISTS", (1,))
    recall = index_of(np.random.default_rng(0).standard_normal((3000, 32), np.float32)).recall
    assert recall is not None
    assert recall < 0.5


@pytest.mark.usefixtures("few_are_many", "small_blocks")
@pytest.mark.parametrize(("easy", "probes"), [(True, 2), (False, 16)])
def test_an_index_of_easy_rows_probes_fewer_lists_also_when_it_was_kept(easy: bool, probes: int) -> None:
    X = np.repeat(planted(50), 40, axis=0) if easy else np.random.default_rng(0).standard_normal((3000, 32), np.float32)
    index = index_of(X)
    kept = index_of(X, built=index.built)
    assert [faiss.deserialize_index(found.built.data).nprobe for found in (index, kept)] == [probes, probes]


@pytest.mark.usefixtures("few_are_many", "small_blocks")
def test_recall_and_probes_are_for_the_number_of_neighbors_that_is_asked_for() -> None:
    albums = np.random.default_rng(0).standard_normal((1000, 32), np.float32)
    X = np.repeat(albums, 4, axis=0) + 0.01 * np.random.default_rng(1).standard_normal((4000, 32), np.float32)  # three are in one list, others far apart
    few, many = index_of(X), GSEC(device="cpu").plan().neighbor_index(UnitFeatures([X]), 0)  # 3, and 20 neighbours
    assert few.recall is not None
    assert many.recall is not None
    share = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(many.search(0, 4000, 20).tolist(), true_neighbors(X, 20).tolist(), strict=True)])
    assert many.recall == pytest.approx(share, abs=0.04)
    assert few.recall > 0.95 > many.recall
    assert [faiss.deserialize_index(index.built.data).nprobe for index in (few, many)] == [2, 16]


@pytest.mark.usefixtures("few_are_many")
def test_recall_counts_any_of_many_duplicates_as_found() -> None:
    recall = index_of(np.repeat(planted(50), 40, axis=0)).recall
    assert recall == 1


@pytest.mark.usefixtures("few_are_many")
def test_rows_in_short_lists_still_get_as_many_neighbors_as_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_PROBED_LISTS", (1,))
    found = index_of(planted(1500)).search(0, 1500, 100)
    assert found.min() >= 0
    assert all(len(set(row)) == 100 for row in found.tolist())


@pytest.mark.parametrize("k", [0, 5])
def test_zero_neighbors_or_more_than_there_are_other_rows_are_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k}: each of 5 rows has 4 neighbours"):
        index_of(planted(5)).search(0, 5, k)


def test_the_number_of_neighbors_is_at_most_the_number_of_other_rows() -> None:
    assert [neighbor_count(n, 3) for n in (2, 4, 100)] == [1, 3, 3]
