"""Stage two of SEIC (stage enhance) in the pipeline, with a tiny CLIP model that is trained on striped pictures for a few seconds."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.encoders import load_encoder
from gsec_core.errors import GsecError, Refused
from gsec_core.methods.seic import enhance as method
from gsec_core.report.collect import collect
from gsec_core.results import finishing
from gsec_core.results.export import export
from gsec_core.stages import align, enhance, train
from gsec_core.stages.base import Context, begin, missing, run_stage
from gsec_core.stages.canonical import load_embeddings, usable
from gsec_core.store import Store
from gsec_core.tables import ALIGNMENT_TABLE, ASSIGNMENTS_TABLE, ENHANCED_CLUSTERS, ENHANCED_CLUSTERS_TABLE, ENHANCED_TABLE, ENHANCER_TABLE, schemas

from ..pictures import assign_images, cluster, labels, settings

SIDE, CLASSES, IMAGES = 32, 3, 48
MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "layers": 1, "width": 32, "heads": 1},
}
PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear", "resize_mode": "shortest"}
WORDS = ["stripes across", "stripes along", "stripes on a slant", "a wall", "a flag", "grass", "a fence", "water", "a road"]


def striped(number: int) -> Image.Image:
    """Grey stripes with noise; ``number`` sets their direction and draws their width and contrast."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[:40, :48]
    along = (rows, columns, rows + columns)[number % CLASSES]
    light = 128 + random.uniform(30, 90) * np.sin(along * random.uniform(0.6, 1.0) + random.uniform(0, 6))
    return Image.fromarray(np.clip(light[..., None] + random.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, words, and a checkpoint that can tell the directions of stripes apart a little."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("enhance")
    (folder / "in").mkdir()
    for number in range(IMAGES):
        striped(number).save(folder / "in" / f"{number:03d}.png")
    (folder / "words.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    transform = open_clip.image_transform(SIDE, is_train=False, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.stack([transform(striped(1000 + number)) for number in range(60)])
    head = nn.Linear(24, CLASSES)
    optimizer = torch.optim.AdamW([*model.visual.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(model.encode_image(pixels)), torch.arange(60) % CLASSES).backward()
        optimizer.step()
    (folder / "clip").mkdir()
    save_file(model.state_dict(), folder / "clip" / "open_clip_model.safetensors")
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}))
    return folder


def asking(place: Path, store: Path, **more: Any) -> PipelineConfig:
    """Settings of a short SEIC run with stage two."""
    text = {"source": "nouns", "vocabulary": f"file:{place / 'words.txt'}"}
    given: dict[str, Any] = {
        "clusters": CLASSES,
        "method": "seic",
        "text": text,
        "encode": {"encoder": f"open_clip:local-dir:{place / 'clip'}"},
        "train": {"n_members": 2, "device": "cpu"},
        "seic": {"max_steps": 60, "enhance": True},
    }
    for name, value in more.items():
        given[name] = {**given[name], **value} if isinstance(given.get(name), dict) else value
    return settings(place / "in", store, **given)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "EPOCHS", 8)
    monkeypatch.setattr(method, "BATCH_ROWS", 16)
    monkeypatch.setattr(enhance, "CHECKPOINTS", 4)


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A run that was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        short.__wrapped__(patch)  # type: ignore[attr-defined]
        yield cluster(asking(place, tmp_path_factory.mktemp("store")))[0]


def until_enhance(config: PipelineConfig) -> Context:
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    for name in run.request()["stages"]:
        if name == enhance.STAGE.name:
            return context
        run_stage(context, pipeline.stage(name))
    raise AssertionError("no such stage")


def checkpoints(context: Context) -> dict[str, pa.Table]:
    shards = context.shards(enhance.STAGE, ENHANCER_TABLE)
    return {name: shards.read(name) for name in sorted(shards.names())}


def test_the_stage_comes_after_align_and_leaves_the_clusters_as_they_are(whole: Context, place: Path, tmp_path: Path) -> None:
    stages = whole.run.request()["stages"]
    assert stages[stages.index("align") + 1] == "enhance"
    plain, _, _ = cluster(asking(place, tmp_path, seic={"max_steps": 60, "enhance": False}))
    assert "enhance" not in plain.run.request()["stages"]
    assert labels(plain) == labels(whole)
    for stage in (train.STAGE, align.STAGE):
        assert stage.fingerprint(plain) == stage.fingerprint(whole), "stage one is shared"


def test_stage_two_starts_from_the_member_with_the_most_agreement(whole: Context) -> None:
    alignment = whole.read(align.STAGE, ALIGNMENT_TABLE).to_pylist()
    best = max(alignment, key=lambda row: row["agreement"])
    member, permutation = enhance._member(whole)
    assert permutation.tolist() == best["permutation"]
    theirs = train.load_members(whole)[0][best["member"]].parameters
    assert all(np.array_equal(array, theirs[name]) for name, array in member.items())


def test_labels_of_the_adapted_encoder_use_the_runs_cluster_numbers_and_are_compared_with_them(whole: Context) -> None:
    rows = whole.shards(enhance.STAGE, ENHANCED_TABLE).read("part-00000")
    before = whole.shards(align.STAGE, ASSIGNMENTS_TABLE).read("part-00000")
    assert rows["image_id"] == before["image_id"]
    counts = whole.read(enhance.STAGE, ENHANCED_CLUSTERS_TABLE)
    assert sum(counts["after"].to_pylist()) == IMAGES
    agreed = np.mean(rows["cluster"].to_numpy() == before["cluster"].to_numpy())
    assert sum(counts["both"].to_pylist()) == round(agreed * IMAGES)
    assert agreed > 0.6
    [said] = enhance.remarks(whole)
    assert f"agree with them on {agreed:.1%} of the images. To cluster with it: gsec export --encoder --run {whole.run.id}" in said
    assert said in finishing.summary(whole)["remarks"]


def test_the_tables_of_stage_two_have_the_schemas_of_the_reference(whole: Context) -> None:
    record = whole.run.stage(enhance.STAGE.name)
    assert record is not None
    for table, names in record["tables"].items():
        assert whole.shards(enhance.STAGE, table).read(names[0]).schema == schemas()[table].remove_metadata()


class Killed(BaseException):
    """Ends the stage as a signal would."""


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_and_ends_as_if_undisturbed(
    whole: Context, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = until_enhance(asking(place, tmp_path))
    real, steps = method.Enhancer.learn, []

    def learn(self: method.Enhancer, weak: torch.Tensor, strong: torch.Tensor) -> float:
        if len(steps) == 15:
            raise Killed
        steps.append(self.step)
        return real(self, weak, strong)

    with monkeypatch.context() as patch:
        patch.setattr(method.Enhancer, "learn", learn)
        with pytest.raises(Killed):
            run_stage(context, enhance.STAGE)
    done = sorted(checkpoints(context))
    assert done == ["step-000000006", "step-000000012"]
    with monkeypatch.context() as patch:
        steps.clear()
        patch.setattr(method.Enhancer, "learn", lambda self, weak, strong: steps.append(self.step) or real(self, weak, strong))
        made = run_stage(context, enhance.STAGE)
    assert steps == list(range(12, 24)), "it must go on from the last checkpoint"
    assert made["shards"] == 2 + 1 + 1
    assert checkpoints(context) == checkpoints(whole)
    shards = (made_by.shards(enhance.STAGE, ENHANCED_TABLE).read("part-00000") for made_by in (context, whole))
    assert next(shards) == next(shards)


def test_a_lost_checkpoint_is_made_again_from_the_previous_one(whole: Context, place: Path, tmp_path: Path) -> None:
    context = until_enhance(asking(place, tmp_path))
    run_stage(context, enhance.STAGE)
    shards = context.shards(enhance.STAGE, ENHANCER_TABLE)
    Path(shards.location("step-000000012")).unlink()
    assert run_stage(context, enhance.STAGE) == {"shards": 1, "steps": 6}
    assert checkpoints(context) == checkpoints(whole)


def test_a_checkpoint_of_other_settings_is_not_used(whole: Context, place: Path) -> None:
    other = until_enhance(asking(place, Path(whole.run.files.url), train={"random_state": 1}))
    begin(other, enhance.STAGE)
    assert len(missing(other, enhance.STAGE, enhance.STAGE.steps[0])) == 4


def test_the_exported_encoder_is_the_adapted_model_and_can_be_used_to_cluster_and_assign(whole: Context, place: Path, tmp_path: Path) -> None:
    written = export(whole, tmp_path / "out", encoder=True)
    assert written["encoder"] == 2
    name = f"open_clip:local-dir:{tmp_path / 'out' / 'encoder'}"
    adapted, plain = (load_encoder(each, precision="fp32", device="cpu", threads=1) for each in (name, whole.config.encode.encoder))
    assert adapted.preprocessing == plain.preprocessing
    encoder, enhancer = enhance._adapted(whole, "cpu")
    enhance._restore(whole, enhancer, "step-000000024")
    pixels = np.stack([adapted.preprocess(striped(number)) for number in range(8)])
    vectors = adapted.encode_images(pixels).image
    np.testing.assert_allclose(vectors, encoder.encode_images(pixels).image, atol=1e-6)
    assert np.abs(vectors - plain.encode_images(pixels).image).max() > 1e-4
    np.testing.assert_array_equal(adapted.encode_texts(WORDS), plain.encode_texts(WORDS))

    again, _, _ = cluster(asking(place, Path(whole.run.files.url), encode={"encoder": name}, seic={"max_steps": 60, "enhance": False}))
    np.testing.assert_allclose(load_embeddings(again)[:1], adapted.encode_images(_first(again, adapted)).image, atol=2e-3)
    (tmp_path / "new").mkdir()
    for number in range(200, 206):
        striped(number).save(tmp_path / "new" / f"{number}.png")
    context = assign_images(again, again.config.model_copy(update={"source": str(tmp_path / "new"), "corpus": "new"}))
    assert len(labels(context)) == 6
    with pytest.raises(Refused, match=r"encoder exists already"):
        export(whole, tmp_path / "out", encoder=True)
    with pytest.raises(Refused, match=r"has trained no encoder\. A run with --method seic --set seic\.enhance=true does"):
        export(again, tmp_path / "other", encoder=True)


def _first(context: Context, encoder: Any) -> np.ndarray:
    uri = usable(context).rows["uri"][0].as_py()
    pixels: np.ndarray = encoder.preprocess(Image.open(Path(str(context.config.source)) / uri).convert("RGB"))[None]
    return pixels


def test_images_that_are_gone_or_changed_are_left_out_and_counted(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        striped(number).save(folder / f"{number:03d}.png")
    context = until_enhance(asking(place, tmp_path / "store").model_copy(update={"source": str(folder)}))
    (folder / "003.png").unlink()
    striped(99).save(folder / "007.png")
    run_stage(context, enhance.STAGE)
    assert "2 images were gone or had changed" in enhance.remarks(context)[-1]
    rows, before = (context.shards(stage, name).read("part-00000").to_pylist() for stage, name in TABLES)
    kept = [row["uri"] for row, was in zip(rows, before, strict=True) if (row["cluster"], row["confidence"]) == (was["cluster"], was["confidence"])]
    assert sorted(kept) == ["003.png", "007.png"]


TABLES = ((enhance.STAGE, ENHANCED_TABLE), (align.STAGE, ASSIGNMENTS_TABLE))


def test_the_stage_is_refused_if_too_many_images_are_lost(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        striped(number).save(folder / f"{number:03d}.png")
    context = until_enhance(asking(place, tmp_path / "store").model_copy(update={"source": str(folder)}))
    for number in range(6):
        (folder / f"{number:03d}.png").unlink()
    with pytest.raises(GsecError, match=r"6 of 20 images are gone or have changed since they were encoded.*max_shrink"):
        run_stage(context, enhance.STAGE)
    assert not checkpoints(context)


def test_if_clusters_died_the_run_says_so_and_its_encoder_cannot_be_exported(whole: Context, tmp_path: Path) -> None:
    shutil.copytree(whole.run.files.url, tmp_path / "store")
    copy = Context.of(Store.open(str(tmp_path / "store")).run(whole.run.id), whole.config)
    died = pa.table([range(3), [30, 10, 8], [31, 9, 8], [30, 9, 0]], schema=ENHANCED_CLUSTERS)
    copy.shards(enhance.STAGE, ENHANCED_CLUSTERS_TABLE).replace("all", died, {})
    [said] = enhance.remarks(copy)
    assert "on 81.2% of the images, but 1 of the 3 clusters keep less than a tenth of their images: 2. The run's clusters are unchanged" in said
    assert said in finishing.finish(copy)["remarks"]
    assert said in collect(copy).remarks
    with pytest.raises(Refused, match=r"with the encoder .*, 1 clusters keep less than a tenth"):
        export(copy, tmp_path / "out", encoder=True)
    assert not (tmp_path / "out" / "encoder").exists()


@pytest.mark.parametrize("encoder", ["lite", "open_clip:RN50:openai"])
def test_an_encoder_that_cannot_be_trained_is_refused_before_anything_is_written(place: Path, tmp_path: Path, encoder: str) -> None:
    with pytest.raises(Refused, match=rf'seic\.enhance = true: encode\.encoder = "{encoder}" has no attention blocks'):
        pipeline.request(asking(place, tmp_path / "store", encode={"encoder": encoder}))
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_stage_two_is_refused_unless_the_cpu_is_asked_for(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"there is no GPU here.*train\.device = cpu"):
        pipeline.request(asking(place, tmp_path / "store", train={"device": "auto"}))


def test_vision_transformers_can_be_trained_and_convolutional_networks_cannot() -> None:
    from gsec_core.encoders import skeleton

    for name, can in {"ViT-L-14:openai": True, "ViT-B-16-SigLIP:webli": True, "convnext_base:laion400m_s13b_b51k": False}.items():
        model = skeleton(f"open_clip:{name}")
        assert model is not None
        assert method.Enhancer.fits(model) == can, name


def test_a_checkpoint_holds_plain_float_and_integer_arrays(whole: Context) -> None:
    [*_, last] = checkpoints(whole).values()
    assert {row["dtype"] for row in last.to_pylist()} <= {"<f4", "<i8"}
    state = {row["name"]: np.frombuffer(row["values"], row["dtype"]).reshape(row["shape"]) for row in last.to_pylist()}
    assert int(state["step"]) == 24
