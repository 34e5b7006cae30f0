"""Nouns as the source of text: the stages, the vectors that corpora share, and runs of several methods on one corpus."""

from pathlib import Path

import numpy as np
import pytest

from gsec_core import TAC, methods, pipeline
from gsec_core.config import PipelineConfig
from gsec_core.encoders.lite import LiteEncoder
from gsec_core.errors import Refused
from gsec_core.results import status
from gsec_core.settings import load_config
from gsec_core.stages import align, nouns, train, vocabulary
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_embeddings, load_joint
from gsec_core.store import Store, prune
from gsec_core.tables import (
    ALIGNMENT_TABLE,
    ASSIGNMENTS_TABLE,
    CLUSTER_CENTRES_TABLE,
    CLUSTER_NAMES_TABLE,
    CLUSTERS_TABLE,
    HEAD_TABLE,
    SELECTED_NOUNS_TABLE,
    VOCABULARY_TABLE,
)
from gsec_core.text.nouns import noun_counterparts

from ..pictures import assign_images, cluster, labels, settings, write_pictures

WORDS = ["a red disc", "green disc", "wall", "poster", "ball", "flag", "sky", "sun", "a lamp that hangs from a white ceiling", "plate", "moon", "coin"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a vocabulary."""
    folder = tmp_path_factory.mktemp("nouns")
    write_pictures(folder / "in", range(24))
    (folder / "words.txt").write_text("\n".join(WORDS))
    return folder


def with_nouns(place: Path, store: Path, text: dict[str, str] | None = None, **more: object) -> PipelineConfig:
    words = {"source": "nouns", "vocabulary": f"file:{place / 'words.txt'}", **(text or {})}
    return settings(place / "in", store, **{"clusters": 3, "text": words, "tac": {"max_steps": 12}, "train": {"n_members": 3}, **more})


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return cluster(with_nouns(place, tmp_path_factory.mktemp("store"), method="tac"))[0]


def test_every_word_has_a_vector_in_a_table_that_belongs_to_the_store_and_not_to_a_run(whole: Context) -> None:
    words, vectors = vocabulary.load_words(whole)
    assert words == WORDS
    assert np.linalg.norm(vectors.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)
    assert whole.shards(vocabulary.STAGE, VOCABULARY_TABLE).directory.startswith("vocabularies/")
    said = vocabulary.encode.STAGE.load(whole.config).encode_texts(["a photo of a wall", WORDS[8]])
    assert vectors[[2, 8]] == pytest.approx(said, abs=1e-3), "a word goes into the prompt, a sentence does not"


def test_counterparts_are_made_of_the_selected_words(whole: Context) -> None:
    rows = whole.read(nouns.STAGE, SELECTED_NOUNS_TABLE).to_pylist()
    assert 3 <= len(rows) <= len(WORDS)
    assert all(row["word"] == WORDS[row["noun"]] for row in rows)
    kept = np.array([row["embedding"] for row in rows], np.float16)
    np.testing.assert_allclose(nouns.load_counterparts(whole), np.concatenate(list(noun_counterparts(load_joint(whole), kept))), rtol=0, atol=2e-3)


def test_timings_include_shared_shards_and_count_the_seconds_of_tables_made_together_once(whole: Context) -> None:
    rows = {row["stage"]: row for row in status.timings(whole.run)}
    shared = whole.shards(vocabulary.STAGE, VOCABULARY_TABLE)
    facts = [shared.facts(name) for name in shared.names()]
    assert rows["vocabulary"]["shards"] == len(facts)
    assert rows["vocabulary"]["seconds"] == pytest.approx(sum(fact["seconds"] for fact in facts), abs=0.06)
    made_together = {whole.shards(align.STAGE, table).facts("all")["seconds"] for table in (ALIGNMENT_TABLE, HEAD_TABLE, CLUSTER_CENTRES_TABLE)}
    alone = [whole.shards(align.STAGE, table).facts(name)["seconds"] for table, name in ((ASSIGNMENTS_TABLE, "part-00000"), (CLUSTERS_TABLE, "all"))]
    [together] = made_together
    assert rows["align"]["shards"] == 5
    assert rows["align"]["seconds"] == pytest.approx(together + sum(alone), abs=0.06)


def test_the_stages_give_the_same_result_as_the_estimator(whole: Context) -> None:
    parameters = {"max_steps": 12, "n_members": 3, "device": "cpu"}
    fitted = TAC(3, **parameters).fit(np.array(load_embeddings(whole)), text=np.array(nouns.load_counterparts(whole)))
    shards, names = whole.run.table(ASSIGNMENTS_TABLE)
    rows = shards.read(names[0])
    assert np.array_equal(rows["cluster"].to_numpy(), fitted.labels_)
    assert rows["confidence"].to_numpy() == pytest.approx(fitted.confidence_, abs=1e-5)


def test_clusters_are_named_by_nouns_or_by_descriptions(whole: Context) -> None:
    def named(context: Context) -> list[dict[str, object]]:
        shards, names = context.run.table(CLUSTER_NAMES_TABLE)
        rows: list[dict[str, object]] = shards.read(names[0]).to_pylist()
        return rows

    by_nouns = named(whole)
    assert {row["namer"] for row in by_nouns} == {"nouns"}
    assert {str(row["name"]).split(",")[0] for row in by_nouns} <= set(WORDS)
    assert len({row["name"] for row in by_nouns}) == 3
    by_words = named(cluster(whole.config.model_copy(update={"publish": whole.config.publish.model_copy(update={"namer": "terms"})}))[0])
    assert {row["namer"] for row in by_words} == {"terms"}


def test_runs_with_another_method_or_text_redo_only_the_stages_that_depend_on_it(place: Path, tmp_path: Path) -> None:
    made = {}
    for method, text in [("gsec", "captions"), ("tac", "nouns"), ("tac-kmeans", "nouns"), ("gsec", "nouns"), ("gsec", "none"), ("tac", "captions")]:
        config = with_nouns(place, tmp_path, method=method)
        config = config.model_copy(update={"text": config.text.model_copy(update={"source": text})})
        _, _, found = cluster(config)
        made[method, text] = [name for name, sums in found.items() if sums]
    below = ["prepare", "duplicates", "train", "align", "publish", "hierarchy", "map", "lineage", "report"]
    assert made == {
        ("gsec", "captions"): ["encode", "refit", "baseline", "prototypes", "describe", "fuse", *below],
        ("tac", "nouns"): ["vocabulary", "nouns", *below],
        ("tac-kmeans", "nouns"): below,
        ("gsec", "nouns"): below,
        ("gsec", "none"): below,
        ("tac", "captions"): below,
    }


def test_a_second_corpus_of_the_store_reuses_the_word_vectors_and_prune_keeps_them(place: Path, tmp_path: Path) -> None:
    first, _, made = cluster(with_nouns(place, tmp_path))
    assert made["vocabulary"]["words"] == len(WORDS)
    other = write_pictures(tmp_path / "other", range(40, 52))
    second, _, made = cluster(with_nouns(place, tmp_path).model_copy(update={"source": str(other)}))
    assert made["vocabulary"] == {}
    store = Store.open(str(tmp_path))
    assert {corpus.name for corpus in store.corpora()} == {first.corpus.name, second.corpus.name}
    [table] = store.shared_tables()
    assert table.directory not in {deletion.path for deletion in prune.plan(store, keep_runs=1)}
    assert not status.verify(store)
    [name] = table.names()
    path = tmp_path / table.path(name)
    path.write_bytes(path.read_bytes()[:-40])
    assert len(status.verify(store)) == 1, "verify must find the damaged shard and set it aside"
    assert cluster(with_nouns(place, tmp_path))[2]["vocabulary"]["words"] == len(WORDS)


def test_only_the_missing_shard_of_words_is_made_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "SHARD_WORDS", 5)
    context, _, made = cluster(with_nouns(place, tmp_path))
    assert made["vocabulary"]["shards"] == 3
    before = vocabulary.load_words(context)[1]
    (tmp_path / context.shards(vocabulary.STAGE, VOCABULARY_TABLE).path("words-00001")).unlink()
    again, _, made = cluster(with_nouns(place, tmp_path))
    assert (made["vocabulary"]["shards"], made["vocabulary"]["words"]) == (1, 5)
    assert np.array_equal(vocabulary.load_words(again)[1], before)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"method": "magic"}, "there is no such method; there are `gsec`, `tac`"),
        ({"method": "tac", "text": {"source": "none"}}, "method tac cannot use it; give `nouns` or `captions`"),
        ({"text": {"vocabulary": "file:/nowhere"}}, "it cannot be read"),
        ({"text": {"prompts": "a photo"}}, "has no place for the word"),
        ({"publish": {"namer": "nouns"}, "text": {"source": "none"}}, "it needs text.source = nouns"),
        ({"method": "sic", "nouns": {"tau": 0.1}}, "nouns.tau = 0.1: method sic has no such setting"),
        ({"method": "sic", "text": {"source": "captions"}}, "method sic cannot use it; give `nouns`"),
        ({"method": "zero-shot"}, "clusters = 3: method zero-shot takes a name for each, and text.vocabulary = file:.* has 12"),
        ({"method": "zero-shot", "clusters": "auto"}, "clusters = auto: method zero-shot takes a name for each, .* Give clusters = 12"),
        ({"method": "tac", "train": {"n_members": 1000}, "clusters": 100}, "aligning them in 100 clusters would take"),
        ({"method": "tac", "clusters": 40_000}, "^clusters = 40000: members can be aligned in at most 32768"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(more: dict[str, object], says: str, place: Path, tmp_path: Path) -> None:
    config = with_nouns(place, tmp_path / "store", **more)
    with pytest.raises(Refused, match=says):
        pipeline.request(config)
    assert not (tmp_path / "store" / "runs").exists() or not list((tmp_path / "store" / "runs").iterdir())


def test_text_can_be_set_by_its_source_alone_and_keeps_its_other_settings(tmp_path: Path) -> None:
    (tmp_path / "gsec.toml").write_text('text = "nouns"')
    config = load_config(tmp_path / "gsec.toml", {"text": {"vocabulary": "imagenet"}})
    assert (config.text_source, config.text.vocabulary) == ("nouns", "imagenet")


def test_an_encoder_without_texts_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiteEncoder, "has_texts", False)
    with pytest.raises(Refused, match="it does not encode texts"):
        pipeline.request(with_nouns(place, tmp_path / "store"))


def test_fewer_usable_words_than_clusters_are_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("wall\nball\n")
    with pytest.raises(Refused, match="only 2 of its 2 words tell the images apart, fewer than clusters = 3"):
        cluster(with_nouns(place, tmp_path / "store", text={"vocabulary": f"file:{tmp_path / 'two.txt'}"}))


def test_given_names_become_the_names_of_the_clusters_of_their_nearest_images(place: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red | scarlet\ngreen\nblue\n")
    context, _, _ = cluster(with_nouns(place, tmp_path / "store", method="zero-shot", text={"vocabulary": f"file:{names}"}))
    shards, parts = context.run.table(CLUSTER_NAMES_TABLE)
    named = {row["cluster"]: row["name"] for row in shards.read(parts[0]).to_pylist()}
    assert sorted(name.split(",")[0] for name in named.values()) == ["blue", "green", "red"]
    encoder = vocabulary.encode.STAGE.load(context.config)
    texts = [encoder.encode_texts([f"a photo of a {word}" for word in words]).mean(0) for words in (["red", "scarlet"], ["green"], ["blue"])]
    nearest = (load_joint(context).astype(np.float32) @ (np.array(texts) / np.linalg.norm(texts, axis=1, keepdims=True)).T).argmax(1)
    assignments, parts = context.run.table(ASSIGNMENTS_TABLE)
    found = [named[cluster].split(",")[0] for cluster in assignments.read(parts[0])["cluster"].to_pylist()]
    assert found == [["red", "green", "blue"][name] for name in nearest]


@pytest.mark.parametrize("method", ["sic", "seic"])
def test_the_stages_select_nouns_and_train_members_as_sic_and_seic_do(method: str, place: Path, tmp_path: Path) -> None:
    context, _, _ = cluster(with_nouns(place, tmp_path, method=method, **{method: {"max_steps": 8}}))
    X, joint, words = np.array(load_embeddings(context)), np.array(load_joint(context)), vocabulary.load_words(context)[1]
    estimator = methods.find(method).load()(3, max_steps=8, n_members=3, device="cpu").fit(X, nouns=words, joint=joint)
    kept = context.read(nouns.STAGE, SELECTED_NOUNS_TABLE)["noun"].to_pylist()
    assert sorted(kept) == sorted(estimator.nouns_.tolist())
    if method == "seic":
        stored = np.array(nouns.load_counterparts(context))
        made = np.concatenate(list(noun_counterparts(joint, words[estimator.nouns_], estimator.noun_selection())))
        np.testing.assert_allclose(stored, made, rtol=0, atol=2e-3)
        estimator.fit(X, text=stored)  # the stored counterparts are rounded; with them the members can be compared bit by bit
    for ours, theirs in zip(train.load_members(context)[0], estimator.members_, strict=True):
        for name, array in theirs.parameters.items():
            assert np.array_equal(ours.parameters[name], array)


def test_images_are_assigned_by_a_run_with_nouns_to_the_clusters_they_have_in_it(whole: Context, place: Path, tmp_path: Path) -> None:
    context = assign_images(whole, settings(place / "in", whole.run.files.url, corpus="again"))
    theirs, ours = labels(whole), labels(context)
    assert np.mean([ours[uri] == theirs[uri] for uri in ours]) >= 0.8, "the head that assigns must agree with the consensus"
