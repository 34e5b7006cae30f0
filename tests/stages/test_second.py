"""A second encoder in place of text: the stages, the tables that runs share, new images, and images that one encoder cannot use."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from gsec_core import TURTLE, methods, pipeline
from gsec_core.config import PipelineConfig
from gsec_core.encoders import load_encoder
from gsec_core.encoders.open_clip import OpenClipEncoder
from gsec_core.errors import Refused
from gsec_core.results import compare, finishing, status
from gsec_core.sources.base import RejectedImage
from gsec_core.stages import encode, prepare, text
from gsec_core.stages.base import Context, begin, missing, run_stage, work
from gsec_core.stages.canonical import load_embeddings, load_second, usable
from gsec_core.store import Store, prune
from gsec_core.tables import ASSIGNMENTS_TABLE, EMBEDDINGS_TABLE
from gsec_core.text import ENCODER

from ..checkpoint import write_checkpoint
from ..pictures import assign_images, cluster, labels, settings, write_pictures

ABOVE = ["baseline", "prototypes", "describe"]
BELOW = ["prepare", "duplicates", "train", "align", "publish", "hierarchy", "map", "lineage", "report"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a checkpoint of a tiny CLIP model."""
    folder = tmp_path_factory.mktemp("second")
    write_pictures(folder / "in", range(24))
    write_checkpoint(folder / "clip")
    return folder


def clip(place: Path) -> str:
    return f"open_clip:local-dir:{place / 'clip'}"


def with_second(place: Path, store: Path, **more: object) -> PipelineConfig:
    own = {"method": "turtle", "clusters": 3, "text": {"source": "encoder", "encoder": clip(place)}, "train": {"n_members": 2}}
    return settings(place / "in", store, **{**own, "turtle": {"max_steps": 20}, "temi": {"max_steps": 5}, "tac": {"max_steps": 12}, **more})


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return cluster(with_second(place, tmp_path_factory.mktemp("store")))[0]


def test_the_counterparts_are_the_embeddings_of_the_second_encoder(whole: Context, place: Path) -> None:
    encoder = load_encoder(clip(place), precision="fp32", device="cpu", threads=1)
    pixels = [encoder.preprocess(Image.open(place / "in" / uri).convert("RGB")) for uri in usable(whole).rows["uri"].to_pylist()]
    np.testing.assert_allclose(load_second(whole), encoder.encode_images(np.stack(pixels)).image, rtol=0, atol=2e-3)
    assert [half.shape[1] for half in text.halves(whole, load_embeddings(whole))] == [1280, 32]
    assert (text.weight(whole), text.source_of(whole.run), encode.encoders_of(whole.run)) == (0.5, "encoder", f"lite + {clip(place)}")
    assert whole.run.table(EMBEDDINGS_TABLE)[0] == whole.shards(encode.STAGE, EMBEDDINGS_TABLE), "the table of embeddings must be the first encoder's"


def test_the_stages_give_the_same_result_as_the_estimator_with_two_spaces(whole: Context) -> None:
    spaces = [np.array(load_embeddings(whole)), np.array(load_second(whole))]
    fitted = TURTLE(3, max_steps=20, n_members=2, device="cpu").fit(spaces)
    shards, names = whole.run.table(ASSIGNMENTS_TABLE)
    rows = shards.read(names[0])
    assert np.array_equal(rows["cluster"].to_numpy(), fitted.labels_)
    assert rows["confidence"].to_numpy() == pytest.approx(fitted.confidence_, abs=1e-5)


def test_runs_with_another_method_or_encoder_redo_only_the_stages_that_depend_on_it(place: Path, tmp_path: Path) -> None:
    two, none = {"source": "encoder", "encoder": clip(place)}, {"source": "none"}
    swapped = {"encode": {"encoder": clip(place)}, "text": {"source": "encoder", "encoder": "lite"}}
    made = []
    for more in (
        {"method": "turtle", "text": two},
        {"method": "gsec", "text": two},
        {"method": "temi", "text": two},
        {"method": "turtle", "text": none},
        {"method": "turtle", **swapped},
        {"method": "turtle", "encode": {"encoder": clip(place)}, "text": none},
        {"method": "tac", "text": two},
    ):
        context, _, found = cluster(with_second(place, tmp_path, **more))
        made.append([name for name, sums in found.items() if sums])
    again = ["refit", *BELOW]  # the stages redone when the encoders are others, or are swapped
    assert made == [["encode", "encode2", "refit", *ABOVE, *BELOW], BELOW, BELOW, [*again], [*again[:1], *ABOVE, *BELOW], again, BELOW]
    assert len(context.corpus.tables(EMBEDDINGS_TABLE)) == 2, "each encoder has one table"


@pytest.mark.parametrize("method", [method.name for method in methods.BUILT_IN if ENCODER in method.texts])
def test_every_method_that_accepts_a_second_encoder_clusters_by_two_encoders(method: str, whole: Context, place: Path) -> None:
    config = with_second(place, whole.run.files.url, method=method, seic={"max_steps": 12}, asd={"max_steps": 80})
    context, _, made = cluster(config)
    assert made["encode2"] == {}, "the store already has the second encoder's embeddings"
    assert len(prepare.load_halves(context)) == 2
    assert sum(row["size"] for row in finishing.cluster_rows(context)) == 24


def test_each_encoder_can_be_redone_alone(place: Path, tmp_path: Path) -> None:
    def made(config: PipelineConfig, *redo: str) -> list[str]:
        return [name for name, sums in cluster(config, redo)[2].items() if sums]

    config = with_second(place, tmp_path)
    cluster(config)
    assert made(config, "encode2") == ["encode2", "refit", *BELOW], "the stages before prepare do not read the second encoder's embeddings"
    assert made(config, "encode")[:2] == ["encode", "encode2"]
    assert made(config) == []


def test_a_killed_second_encoder_goes_on_where_it_was_and_encodes_only_new_images_later(place: Path, tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(24))
    config = with_second(place, tmp_path / "store").model_copy(update={"source": str(source)})
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    run_stage(context, encode.STAGE)
    begin(context, encode.SECOND)
    [step] = encode.SECOND.steps
    work(context, encode.SECOND, step, missing(context, encode.SECOND, step)[:1])  # one shard of three, then killed
    [row] = status.runs(Store.open(config.store))
    assert (row["stages"]["encode2"], row["images"]["ok"]) == ({"done": 2, "planned": 6}, 8)
    with pytest.raises(Exception, match="Run stage encode2 first"):
        encode.encoded_rows(context)
    _, _, made = cluster(config)
    assert (made["encode"], made["encode2"]["encoded"]) == ({}, 16)
    write_pictures(source, [24, 25])
    (source / "007.jpg").unlink()
    context, _, made = cluster(config)
    assert (made["encode"]["encoded"], made["encode2"]["encoded"]) == (2, 2)
    assert set(labels(context)) == {path.name for path in source.iterdir()}
    assert not [deletion for deletion in prune.plan(Store.open(config.store)) if EMBEDDINGS_TABLE in deletion.path]


def test_images_to_assign_are_encoded_by_both_encoders(whole: Context, place: Path) -> None:
    context = assign_images(whole, settings(place / "in", whole.run.files.url, corpus="again"))
    assert context.run.request()["stages"] == ["encode", "encode2", "assign"]
    theirs, ours = labels(whole), labels(context)
    assert np.mean([ours[uri] == theirs[uri] for uri in ours]) >= 0.8, "the head that assigns must agree with the consensus"
    features = prepare.features_of(whole, text.halves_of(whole, context, slice(0, 5)))
    assert np.array_equal(features.half(1, slice(0, 5)), prepare.load_features(whole).half(1, slice(0, 5))), (
        "equal images must have an equal second half of features"
    )


def test_an_image_that_one_encoder_cannot_use_is_left_out_and_counted_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = OpenClipEncoder.preprocess

    def preprocess(self: OpenClipEncoder, image: Image.Image) -> np.ndarray:
        if image.size == (5, 5):
            raise RejectedImage("too small for this encoder")
        return whole(self, image)

    monkeypatch.setattr(OpenClipEncoder, "preprocess", preprocess)
    source = write_pictures(tmp_path / "in", range(20))
    Image.new("RGB", (5, 5)).save(source / "small.png")
    (source / "broken.png").write_bytes(b"no image")
    config = with_second(place, tmp_path / "store").model_copy(update={"source": str(source), "max_rejects": 0.5})
    context, _, made = cluster(config)
    assert (made["encode"]["rejected"], made["encode2"]["rejected"]) == (1, 2)
    said = finishing.summary(context)
    assert (said["images"], said["rejected"]) == (22, 2)
    rows = {row["uri"]: row["reason"] for row in encode.encoded_rows(context).to_pylist() if row["status"] != "ok"}
    assert rows.keys() == {"broken.png", "small.png"}
    assert rows["small.png"] == "too small for this encoder"
    assert set(labels(context)) == {f"{seed:03d}.jpg" for seed in range(20)}
    assert len(load_second(context)) == 20
    [row] = status.runs(Store.open(config.store))
    assert row["images"] == {"listed": 22, "ok": 20, "rejected": 2, "missing": 0, "damaged_shards": 0}
    alone, _, _ = cluster(config.model_copy(update={"text": config.text.model_copy(update={"source": "none", "encoder": None})}))
    assert "small.png" in labels(alone), "the first encoder alone can use it"
    compared = compare.compare(context, [alone.run])
    assert [run.encoder for run in compared.runs] == [f"lite + {clip(place)}", "lite"]


def test_an_image_that_changed_between_the_encoders_is_missing_until_the_next_run(place: Path, tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    config = with_second(place, tmp_path / "store").model_copy(update={"source": str(source)})
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    run_stage(context, encode.STAGE)
    write_pictures(tmp_path / "other", [99])
    (tmp_path / "other" / "099.jpg").replace(source / "003.jpg")
    run_stage(context, encode.SECOND)
    [row] = encode.reasons(context)
    assert (row["status"], row["reason"], row["images"]) == ("missing", "changed between one encoder and the other", 1)
    _, changes, made = cluster(config)
    assert (changes.changed, made["encode"]["ok"], made["encode2"]["copied"]) == (1, 1, 1)


def test_the_agreed_status_of_an_image_is_ok_only_if_both_encoders_could_use_it() -> None:
    def shard(*rows: tuple[bytes | None, str, str | None]) -> pa.Table:
        return pa.Table.from_pylist([dict(zip(("content_hash", "status", "reason"), row, strict=True)) for row in rows])

    first = shard((b"a", "ok", "a note"), (b"b", "ok", None), (b"c", "rejected", "no image"), (None, "missing", "gone"), (b"e", "ok", None))
    other = shard((b"a", "ok", None), (b"b", "rejected", "too small"), (b"c", "rejected", "broken"), (b"d", "ok", None), (None, "missing", "gone"))
    agreed = encode.agreed([first, other])
    assert agreed["status"].to_pylist() == ["ok", "rejected", "rejected", "missing", "missing"]
    assert agreed["reason"].to_pylist() == ["a note", "too small", "no image", "gone", "gone"]
    assert pc.all(pc.equal(encode.agreed([first])["status"], first["status"])).as_py()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"text": {"source": "encoder"}}, r"text.source = encoder: name the second encoder with text.encoder"),
        ({"text": {"source": "none", "encoder": "lite"}}, r"text.encoder = lite: a second encoder needs text.source = encoder, and it is none"),
        ({"text": {"encoder": "lite"}}, r"a second encoder needs text.source = encoder, and it is none"),
        ({"text": {"source": "encoder", "encoder": "lite"}}, r'text.encoder = "lite": it is the same as the first encoder, encode.encoder'),
        ({"text": {"source": "encoder", "encoder": "foo"}}, r'^text.encoder = "foo": there is no such encoder'),
        ({"text": {"source": "encoder", "encoder": "open_clip:ViT-B-33:openai"}}, r'^text.encoder = "open_clip:ViT-B-33:openai": .*similar names are'),
        ({"text": {"source": "encoder", "encoder": "open_clip:local-dir:/nowhere"}}, r"^text.encoder = .* does not exist"),
        ({"method": "sic", "text": {"source": "encoder", "encoder": "{clip}"}}, r"text.source = encoder: method sic cannot use it; give `nouns`"),
        ({"publish": {"namer": "nouns"}, "text": {"source": "encoder", "encoder": "{clip}"}}, r"it needs text.source = nouns"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(more: dict[str, dict[str, str]], says: str, place: Path, tmp_path: Path) -> None:
    config = settings(place / "in", tmp_path / "store", **{"method": "turtle", "clusters": 3, **more})
    if config.text.encoder == "{clip}":
        config = config.model_copy(update={"text": config.text.model_copy(update={"encoder": clip(place)})})
    with pytest.raises(Refused, match=says):
        pipeline.request(config)
    assert not (tmp_path / "store" / "runs").exists() or not list((tmp_path / "store" / "runs").iterdir())


def test_assigning_with_another_checkpoint_of_the_second_encoder_is_refused(whole: Context, place: Path, tmp_path: Path) -> None:
    moved = write_checkpoint(tmp_path / "clip", seed=1)
    other = whole.config.model_copy(update={"text": whole.config.text.model_copy(update={"encoder": f"open_clip:local-dir:{moved}"})})
    context = Context(whole.run, other, whole.corpus, whole.generation)
    with pytest.raises(Refused, match="has changed since the run was encoded"):
        pipeline.assign.check_model(context)
