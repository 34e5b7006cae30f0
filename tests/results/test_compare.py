"""The comparison of runs, checked with scikit-learn and with loops over the runs' own tables."""

from itertools import combinations
from math import fsum
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from gsec_core import pipeline
from gsec_core.clustering.metrics import accuracy, purity
from gsec_core.errors import BadShard, Refused
from gsec_core.results import compare as comparing
from gsec_core.results.compare import Comparison, check, compare
from gsec_core.stages import align
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_embeddings, usable
from gsec_core.store import Run
from gsec_core.tables import ASSIGNMENTS_TABLE, CLUSTER_NAMES_TABLE

from ..pictures import cluster, labels, picture, settings, write_pictures

ALONE = {"text": {"source": "none"}, "describe": {"captioner": "tagger"}}


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> list[Context]:
    """Three runs: two methods on 40 images, two of which are copies, and one run after one image was changed and six were added."""
    top = tmp_path_factory.mktemp("compare")
    folder, store = write_pictures(top / "in", range(38)), top / "store"
    for copy in ("a", "b"):
        (folder / f"copy-{copy}.jpg").write_bytes((folder / "007.jpg").read_bytes())
    first = cluster(settings(folder, store, clusters=6))[0]
    second = cluster(settings(folder, store, clusters=4, method="turtle", turtle={"max_steps": 20}, pipeline="second", **ALONE))[0]
    picture(99).save(folder / "000.jpg")
    write_pictures(folder, range(50, 56))
    third = cluster(settings(folder, store, clusters=5, pipeline="third", **ALONE))[0]
    return [first, second, third]


@pytest.fixture(scope="module")
def found(contexts: list[Context]) -> Comparison:
    return compare(contexts[0], [context.run for context in contexts[1:]])


def uris(found: Comparison) -> list[str]:
    named: list[str] = found.images["uri"].to_pylist()
    return named


def own_labels(found: Comparison, contexts: list[Context]) -> NDArray[np.int32]:
    """Labels (runs, images), read from the runs' own tables."""
    return np.array([[labels(context)[uri] for uri in uris(found)] for context in contexts], np.int32)


def test_images_that_only_some_of_the_runs_have_are_left_out_and_counted(found: Comparison, contexts: list[Context]) -> None:
    assert sorted(uris(found)) == sorted(set(labels(contexts[0])) - {"000.jpg"})
    assert [run.left_out for run in found.runs] == [1, 1, 7]
    np.testing.assert_array_equal(found.labels, own_labels(found, contexts))


def test_a_row_gives_a_runs_method_text_encoder_and_sizes_of_clusters(found: Comparison, contexts: list[Context]) -> None:
    for row, run, own, context in zip(found.rows(), found.runs, found.labels, contexts, strict=True):
        sizes = np.bincount(own, minlength=context.config.n_clusters)
        assert (row["run"], row["method"], row["text"], row["encoder"]) == (context.run.id, context.config.method, context.config.text_source, "lite")
        assert (row["clusters"], row["largest"], row["smallest"], row["empty"]) == (len(sizes), sizes.max(), sizes.min(), (sizes == 0).sum())
        assert list(run.names) == context.run.table(CLUSTER_NAMES_TABLE)[0].read("all")["name"].to_pylist()
        rows = context.shards(align.STAGE, ASSIGNMENTS_TABLE).read("part-00000").to_pylist()
        assert row["agreement"] == pytest.approx(np.mean([row["agreement"] for row in rows if row["uri"] in uris(found)]))
    assert [(row["method"], row["text"], row["clusters"]) for row in found.rows()] == [("gsec", "captions", 6), ("turtle", "none", 4), ("gsec", "none", 5)]


def test_seconds_count_only_the_stages_that_the_runs_do_not_share(contexts: list[Context]) -> None:
    first, second = (context.run for context in contexts[:2])
    found = compare(contexts[0], [second])
    shared = {name for name, record in first.stages().items() if record == second.stages().get(name)}
    assert shared == {"encode", "refit"}, "the number of prototypes depends on the number of clusters, so they are not shared"
    for run, compared in zip((first, second), found.runs, strict=True):
        assert compared.seconds == pytest.approx(sum(seconds_of(run, name) for name in run.stages() if name not in {*shared, "report"}), abs=0.05)


def seconds_of(run: Run, stage: str) -> float:
    """The seconds of a stage by the footers of its shards; shards made together have the same value, which counts once."""
    record = run.stages()[stage]
    tables = [(run.place(record).table(table, record["fingerprint"]), names) for table, names in record["tables"].items()]
    made = {(name, table.facts(name)["seconds"]) for table, names in tables for name in names}
    return round(fsum(seconds for _, seconds in made), 1)  # exact: a sum in another order may round otherwise


def test_purity_uses_exact_neighbours_by_the_first_runs_embeddings(found: Comparison, contexts: list[Context]) -> None:
    place_of = {uri: place for place, uri in enumerate(usable(contexts[0]).rows["uri"].to_pylist())}
    X = load_embeddings(contexts[0])[[place_of[uri] for uri in uris(found)]].astype(np.float32)
    similar = X @ X.T
    np.fill_diagonal(similar, -1)
    for own, run in zip(found.labels, found.runs, strict=True):
        near = NearestNeighbors(n_neighbors=comparing.NEIGHBORS, metric="precomputed").fit(1 - similar).kneighbors(1 - similar, return_distance=False)
        assert run.purity == pytest.approx(purity(own, near)[1], abs=1e-3)


def test_the_ari_of_runs_equals_scikit_learns(found: Comparison) -> None:
    wanted = [[adjusted_rand_score(one, other) for other in found.labels] for one in found.labels]
    np.testing.assert_allclose(found.ari, wanted)


def test_clusters_are_matched_so_that_as_many_images_as_possible_are_in_both(found: Comparison) -> None:
    assert [(pair.one, pair.other) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    for pair in found.pairs:
        counts = [len(found.runs[run].sizes) for run in (pair.one, pair.other)]
        table = confusion_matrix(found.labels[pair.one], found.labels[pair.other], labels=range(max(counts)))
        best = table[linear_sum_assignment(table, maximize=True)].sum()
        matched = pair.match[pair.match >= 0]
        assert len(set(matched.tolist())) == len(matched)
        assert pair.both.sum() == best
        assert pair.both.tolist() == [table[one, other] if other >= 0 else 0 for one, other in enumerate(pair.match)]


def test_images_are_shown_in_order_of_how_much_the_runs_differ_on_them(found: Comparison, contexts: list[Context]) -> None:
    match_of = {(pair.one, pair.other): pair.match for pair in found.pairs}
    confidence = [
        {row["uri"]: row["confidence"] for row in context.shards(align.STAGE, ASSIGNMENTS_TABLE).read("part-00000").to_pylist()} for context in contexts
    ]

    def of_first(run: int, of: int) -> object:
        return next((one for one, other in enumerate(match_of[0, run]) if other == of), (run, of)) if run else of

    values = {}
    for place, uri in enumerate(uris(found)):
        names = [of_first(run, int(own[place])) for run, own in enumerate(found.labels)]
        apart = [confidence[one][uri] * confidence[other][uri] if names[one] != names[other] else 0 for one, other in combinations(range(3), 2)]
        values[uri] = sum(apart) / 3
    assert found.differ == sum(value > 0 for value in values.values()) > 0
    shown = [image.uri for image in found.differing]
    assert len([uri for uri in shown if uri in ("007.jpg", "copy-a.jpg", "copy-b.jpg")]) <= 1, "images with equal bytes must be shown only once"
    for image in found.differing:
        place = uris(found).index(image.uri)
        assert image.disagreement == pytest.approx(values[image.uri])
        assert image.clusters == tuple(found.labels[:, place])
        assert image.confidences == pytest.approx([by_uri[image.uri] for by_uri in confidence])
    assert [image.disagreement for image in found.differing] == sorted((image.disagreement for image in found.differing), reverse=True)
    kinds = [image.clusters for image in found.differing]
    assert all(kinds.count(kind) <= comparing.OF_A_KIND for kind in kinds)
    copies = {"copy-a.jpg", "copy-b.jpg", "007.jpg"} - set(shown)
    for uri in set(values) - set(shown) - copies:
        kind = tuple(found.labels[:, uris(found).index(uri)])
        weakest = min((image.disagreement for image in found.differing if image.clusters == kind), default=None)
        assert values[uri] == 0 or (kinds.count(kind) == comparing.OF_A_KIND and weakest is not None and values[uri] <= weakest + 1e-6)


def test_scores_against_labels_equal_scikit_learns_and_change_no_row(found: Comparison) -> None:
    truth = {uri: "even" if int(uri[:3]) % 2 == 0 else "odd" for uri in uris(found) if uri[0] == "0" and uri != "003.jpg"}
    before = found.rows()
    scores = found.scores(lambda uri, content_hash: truth.get(uri))
    known = [place for place, uri in enumerate(uris(found)) if uri in truth]
    wanted = [truth[uris(found)[place]] for place in known]
    for row, own in zip(scores, found.labels, strict=True):
        assert row["labelled"] == len(truth)
        assert row["ACC"] == accuracy(wanted, own[known])
        assert row["NMI"] == pytest.approx(normalized_mutual_info_score(wanted, own[known]))
        assert row["ARI"] == pytest.approx(adjusted_rand_score(wanted, own[known]))
    assert found.rows() == before
    with pytest.raises(Refused, match=r"--labels: none of the 39 images has a label there. .* as in the assignments, such as [01]-?\d*"):
        found.scores(lambda uri, content_hash: None)


def test_the_order_of_the_runs_does_not_matter(found: Comparison, contexts: list[Context]) -> None:
    other = compare(contexts[2], [contexts[0].run])
    assert sorted(uris(other)) == sorted(uris(found))
    assert other.ari[0, 1] == pytest.approx(found.ari[0, 2])
    assert other.runs[1].purity == pytest.approx(found.runs[0].purity), "runs with the same encoder have the same neighbours"


def test_runs_that_cannot_be_compared_are_refused_with_a_reason(contexts: list[Context], tmp_path: Path) -> None:
    first, second, _ = (context.run for context in contexts)
    folder, store = Path(contexts[0].config.source or ""), contexts[0].config.store
    unfinished = pipeline.request(settings(folder, store, clusters=3))[0]
    counting = pipeline.request(settings(folder, store, clusters="auto"))[0]
    elsewhere = cluster(settings(write_pictures(tmp_path / "other", range(12)), store, corpus="another", **ALONE))[0].run
    config = pipeline.assignment_config(first, settings(write_pictures(tmp_path / "new", range(60, 64)), store))
    assigning = pipeline.request(config, of_run=first.id)[0]
    for runs, says in (
        ([first], "give two or more runs"),
        ([first, second, first], f"run {first.id} is given twice"),
        ([first, unfinished], f"run {unfinished.id} is not finished"),
        ([first, counting], "It finds the number of clusters for another run: name that run"),
        ([first, elsewhere], f"run {elsewhere.id} of another. Compare runs of one corpus"),
        ([first, assigning], f"assigns images to the clusters of run {first.id}"),
    ):
        with pytest.raises(Refused, match=says):
            check(runs)


def test_runs_without_an_image_in_common_are_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(10))
    runs = []
    for seeds in (range(10), range(20, 30)):
        for place, seed in enumerate(seeds):
            picture(seed).save(folder / f"{place:03d}.jpg")
        runs.append(cluster(settings(folder, tmp_path / "store", pipeline=f"p{len(runs)}", **ALONE))[0])
    with pytest.raises(Refused, match="these runs have 0 images in common"):
        compare(runs[0], [runs[1].run])


def test_a_damaged_table_is_an_error_that_names_it(contexts: list[Context]) -> None:
    path = Path(contexts[1].shards(align.STAGE, ASSIGNMENTS_TABLE).location("part-00000"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    try:
        with pytest.raises(BadShard, match="part-00000"):
            compare(contexts[0], [contexts[1].run])
    finally:
        path.write_bytes(whole)
