"""Stage encode: bad images become rows, the kind of source changes nothing, damaged shards are made again."""

import io
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks import large_images
from gsec_core import pipeline
from gsec_core.encoders import encoder_identity
from gsec_core.errors import BadShard, GsecError, Refused, Unreachable
from gsec_core.images.decode import NO_END, NO_PROFILE
from gsec_core.images.room import Room
from gsec_core.results import finishing
from gsec_core.sources.base import ImageRef
from gsec_core.stages import baseline, encode
from gsec_core.stages.base import Context, begin, missing, run_stage, work
from gsec_core.stages.canonical import load_embeddings
from gsec_core.tables import BASELINE_TABLE, EMBEDDINGS_TABLE, THUMBNAILS_TABLE

from ..pictures import cluster, encoded, labels, picture, settings, write_pictures
from ..profiles import SWAPPED, rgb_profile
from .steps import run_stages


def flip_a_byte(path: str, at: float = 0.5) -> None:
    data = bytearray(Path(path).read_bytes())
    data[int(len(data) * at)] ^= 1
    Path(path).write_bytes(bytes(data))


def as_parquet(folder: Path, path: Path) -> Path:
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(folder.iterdir())]
    pq.write_table(pa.table({"image": images}), path, row_group_size=5)
    return path


def as_tars(folder: Path, directory: Path) -> str:
    directory.mkdir()
    for half in range(2):
        with tarfile.open(directory / f"{half}.tar", "w") as tar:
            for file in sorted(folder.iterdir())[half::2]:
                data = file.read_bytes()
                member = tarfile.TarInfo(file.name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return f"{directory}/*.tar"


def by_content(context: Context) -> dict[bytes, int]:
    rows = encode.encoded_rows(context)
    cluster_of = labels(context)
    return {content: cluster_of[uri] for content, uri in zip(rows["content_hash"].to_pylist(), rows["uri"].to_pylist(), strict=True)}


def test_a_folder_a_parquet_file_and_tars_of_the_same_images_give_equal_labels(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(30))
    sources = [str(folder), str(as_parquet(folder, tmp_path / "x.parquet")), as_tars(folder, tmp_path / "tars")]
    found = [by_content(cluster(settings(source, tmp_path / "store", clusters=4))[0]) for source in sources]
    assert len(found[0]) == 30
    assert found[0] == found[1] == found[2]


def test_labels_do_not_depend_on_sharding_or_history(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(12))
    config = settings(folder, tmp_path / "grown", clusters=4)
    encoded(config)
    write_pictures(folder, range(12, 30))
    grown, _, _ = cluster(config)
    at_once, _, _ = cluster(settings(folder, tmp_path / "at-once", clusters=4, ingest={"shard_rows": 100}))
    assert labels(grown) == labels(at_once)


def test_encoding_uses_the_threads_of_the_settings_even_if_torch_was_set_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is loaded once per process, so its loading cannot set the threads here."""
    config = settings(write_pictures(tmp_path / "in", range(8)), tmp_path / "store")
    loaded = encode.STAGE.load(config)
    seen = []
    real = type(loaded).encode_images

    def encode_images(self: object, pixels: object) -> object:
        seen.append(torch.get_num_threads())
        return real(self, pixels)  # type: ignore[arg-type]

    monkeypatch.setattr(type(loaded), "encode_images", encode_images)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    run, _ = pipeline.request(config)
    run_stage(Context.of(run, config), encode.STAGE)
    torch.set_num_threads(before)
    assert encode.STAGE.load(config) is loaded
    assert set(seen) == {config.threads}


def test_bad_images_become_rejected_rows_with_a_reason(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(10))
    (folder / "text.jpg").write_text("this is no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "003.jpg").read_bytes()[:400])
    context, _, made = cluster(settings(folder, tmp_path / "store"))
    rows = {row["uri"]: row for row in encode.encoded_rows(context).to_pylist() if row["status"] != "ok"}
    assert set(rows) == {"text.jpg", "empty.png", "cut.jpg"}
    assert all(row["reason"] for row in rows.values())
    assert made["encode"]["rejected"] == 3
    summary = finishing.summary(context)
    assert (summary["images"], summary["rejected"], len(labels(context))) == (13, 3, 10)
    assert "max_rejects" in finishing.finish(context)["warnings"][0]


def test_embeddings_are_unit_vectors_and_thumbnails_are_small_jpegs(tmp_path: Path) -> None:
    context, _, _ = encoded(settings(write_pictures(tmp_path / "in", range(4)), tmp_path / "store"))
    [name] = context.generation.shard_names
    rows = context.shards(encode.STAGE, EMBEDDINGS_TABLE).read(name)
    for column, length in (("embedding", 1280), ("joint", 384)):
        vectors = np.array(rows[column].to_pylist(), np.float32)
        assert vectors.shape == (4, length)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    thumbnails = context.shards(encode.STAGE, THUMBNAILS_TABLE).read(name)
    assert thumbnails["image_id"] == rows["image_id"]
    assert Image.open(io.BytesIO(thumbnails["thumbnail"][0].as_py())).size == (64, 48)


def test_a_shard_records_its_preprocessing_and_a_run_with_another_one_is_refused(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    config = settings(source, tmp_path / "store")
    context, _, _ = encoded(config)
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    name = sorted(embeddings.names())[0]
    facts = embeddings.facts(name)
    assert facts["preprocessing"]
    embeddings.replace(name, embeddings.read(name), {**facts, "preprocessing": {"size": 7}})
    write_pictures(source, [50])
    with pytest.raises(GsecError, match="--redo encode"):
        encoded(config)


def test_fewer_images_than_clusters_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"clusters = 5.*only 3 images"):
        cluster(settings(write_pictures(tmp_path / "in", range(3)), tmp_path / "store", clusters=5))
    assert not list(tmp_path.rglob("embeddings"))


def test_fewer_usable_images_than_clusters_is_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(3))
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"")
    (folder / "c.jpg").symlink_to("nowhere")
    with pytest.raises(Refused, match=r"only 3 of 6 images are usable \(2 rejected: empty file; 1 missing: the file is gone\)\. Ask for fewer clusters"):
        cluster(settings(folder, tmp_path / "store", clusters=4))


def test_redo_encodes_again_in_a_new_run_and_keeps_the_old_run(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(10)), tmp_path / "store")
    before, _, _ = cluster(config)
    after, _, made = cluster(config, redo=("encode",))
    assert before.run.id != after.run.id
    assert made["encode"]["encoded"] == 10
    assert labels(before) == labels(after)
    assert cluster(config)[0].run.id == after.run.id, "a run without redo then takes the redone run"


def test_another_number_of_clusters_encodes_nothing(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    encoded(settings(source, tmp_path / "store"))
    context, _, made = encoded(settings(source, tmp_path / "store", clusters=3))
    assert made == {}
    assert run_stage(context, baseline.STAGE)["shards"] == 3


@pytest.mark.parametrize("at", [0.02, 0.5, 0.999])
def test_a_flipped_byte_is_found_and_the_shard_is_made_again(tmp_path: Path, at: float) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    before, _, _ = encoded(settings(source, tmp_path / "store"))
    embeddings = before.shards(encode.STAGE, EMBEDDINGS_TABLE)
    name = before.generation.shard_names[1]
    good = embeddings.read(name)
    flip_a_byte(embeddings.location(name), at)
    with pytest.raises(BadShard, match=name):
        cluster(settings(source, tmp_path / "store", clusters=3))
    assert embeddings.set_aside(name)
    after, _, made = encoded(settings(source, tmp_path / "store", clusters=3))
    assert made["encoded"] == 8
    assert embeddings.read(name) == good
    assert len(load_embeddings(after)) == 20


def test_a_damaged_shard_whose_images_are_gone_stops_the_run_until_the_loss_is_accepted(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    config = settings(source, tmp_path / "store")
    context, _, _ = encoded(config)
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    name = context.generation.shard_names[0]
    flip_a_byte(embeddings.location(name))
    embeddings.set_aside(name)
    (source / "000.jpg").unlink()
    with pytest.raises(GsecError, match=r"1 of its images can no longer be read.*encode.accept_loss"):
        run_stage(context, encode.STAGE)
    told = settings(source, tmp_path / "store", encode={"accept_loss": True})
    assert run_stage(Context.of(context.run, told), encode.STAGE)["missing"] == 1


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_an_unmounted_source_leaves_the_shard_uncommitted(tmp_path: Path, kind: str) -> None:
    folder = write_pictures(tmp_path / "in", range(8))
    source = as_tars(folder, tmp_path / "tars") if kind == "tars" else folder
    config = settings(source, tmp_path / "store")
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    begin(context, encode.STAGE)
    for path in (tmp_path / "tars" if kind == "tars" else folder).iterdir():
        path.unlink()
    [step] = encode.STAGE.steps
    with pytest.raises(Unreachable):
        work(context, encode.STAGE, step, step.plan(context))
    assert missing(context, encode.STAGE, step) == step.plan(context)


class Flaky:
    """A source whose reads fail ``failures`` times before they succeed."""

    url = "flaky"

    def __init__(self, failures: int, answers: bool = True) -> None:
        self.failures = failures
        self.answers = answers

    def list(self) -> pa.Table:
        raise AssertionError("not listed here")

    def fetch(self, ref: ImageRef) -> bytes:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError(5, os.strerror(5))
        return b"not an image"

    def check(self) -> None:
        if not self.answers:
            raise Unreachable("the disk is gone")


@pytest.mark.parametrize(("source", "status"), [(Flaky(2), "rejected"), (Flaky(99), "missing")])
def test_a_read_error_is_retried_and_then_makes_the_image_missing(source: Flaky, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    encoder = encode.STAGE.load(settings("in", "store"))
    assert encode.prepare(source, encoder, 96, {}, ImageRef("a.jpg", 1, "1")).status == status


def test_a_read_error_of_a_source_that_does_not_answer_is_raised_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    encoder = encode.STAGE.load(settings("in", "store"))
    with pytest.raises(Unreachable, match="the disk is gone"):
        encode.prepare(Flaky(99, answers=False), encoder, 96, {}, ImageRef("a.jpg", 1, "1"))


def test_a_stage_that_is_ended_reads_no_further_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second image is read only after the end has dealt with those that wait."""
    config = settings(write_pictures(tmp_path / "in", range(30)), tmp_path / "store", encode={"workers": 1, "batch_size": 8})
    context = Context.of(pipeline.request(config)[0], config)
    begin(context, encode.STAGE)
    source, fetched, ended = context.open_source(), [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(False, cancel_futures=cancel_futures)
            ended.set()
            super().shutdown(wait)

    def fetch(ref: ImageRef) -> bytes:
        assert not fetched or ended.wait(300)
        fetched.append(ref)
        return data(ref)

    def end(count: int) -> None:
        raise TimeoutError("the stage hangs")

    data = source.fetch
    monkeypatch.setattr(source, "fetch", fetch)
    monkeypatch.setattr(context, "open_source", lambda: source)
    monkeypatch.setattr(encode, "ThreadPoolExecutor", Pool)
    [step] = encode.STAGE.steps
    with pytest.raises(TimeoutError):
        work(context, encode.STAGE, step, missing(context, encode.STAGE, step), end)
    assert len(fetched) <= 2, "images that were queued for decoding were read after the end"


def test_a_damaged_shard_that_was_set_aside_is_not_read_as_data(tmp_path: Path) -> None:
    context = run_stages(settings(write_pictures(tmp_path / "in", range(10)), tmp_path / "store"), encode.STAGE, baseline.STAGE)
    parts = context.shards(baseline.STAGE, BASELINE_TABLE)
    good = parts.read("part-00000")
    flip_a_byte(parts.location("part-00000"))
    assert parts.set_aside("part-00000")
    run_stage(context, baseline.STAGE)
    assert pq.read_table(Path(parts.location("part-00000")).parent).num_rows == 10
    assert parts.read("part-00000") == good, "it must be made again from the same centres"


def test_a_moved_checkpoint_is_the_same_encoder_and_a_changed_one_is_another(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "open_clip_config.json").write_text("{}")
    here, there = (encoder_identity(f"open_clip:local-dir:{tmp_path / folder}") for folder in ("here", "there"))
    assert here == there
    (tmp_path / "there" / "open_clip_config.json").write_text("{} ")
    assert encoder_identity(f"open_clip:local-dir:{tmp_path / 'there'}") != here


def test_an_image_with_a_harmless_fault_is_used_with_a_note_and_counted(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(8))
    whole = (folder / "000.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[:-2])
    picture(9).save(folder / "b.jpg", icc_profile=b"no profile" * 20)
    (folder / "cut.jpg").write_bytes(whole[:-60])
    context, _, made = cluster(settings(folder, tmp_path / "store"))
    rows = {row["uri"]: (row["status"], row["reason"]) for row in encode.encoded_rows(context).to_pylist()}
    assert rows["a.jpg"] == ("ok", NO_END)
    assert rows["b.jpg"] == ("ok", NO_PROFILE)
    assert rows["cut.jpg"][0] == "rejected"
    assert (made["encode"]["noted"], made["encode"]["rejected"]) == (2, 1)
    assert [one for one in finishing.summary(context)["remarks"] if "fault" in one] == [
        f"1 image has a harmless fault: {note}." for note in (NO_PROFILE, NO_END)
    ]


def test_a_thumbnail_has_the_colours_that_the_embedded_profile_gives(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(3))
    Image.new("RGB", (64, 64), (220, 30, 30)).save(folder / "000.jpg", icc_profile=rgb_profile(SWAPPED, None))
    context = Context.of(pipeline.request(settings(folder, tmp_path / "store"))[0], settings(folder, tmp_path / "store"))
    run_stage(context, encode.STAGE)
    [name] = context.generation.shard_names
    shown = context.shards(encode.STAGE, THUMBNAILS_TABLE).read(name)["thumbnail"].to_pylist()
    colours = [Image.open(io.BytesIO(data)).convert("RGB").getpixel((8, 8)) for data in shown]
    assert min(max(abs(a - b) for a, b in zip(colour, (30, 220, 30), strict=True)) for colour in colours) <= 4


def test_embeddings_depend_neither_on_the_workers_nor_on_the_memory_for_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in range(12):
        picture(seed).resize((1400 + seed, 1300)).save(folder / f"{seed}.{'png' if seed % 2 else 'jpg'}")
    tables = []
    for workers, room in ((1, 2**30), (6, 2**30), (6, 1), (6, 30_000_000)):
        monkeypatch.setattr("gsec_core.images.decode._ROOM", Room(room))
        config = settings(folder, tmp_path / f"{workers}-{room}", encode={"workers": workers})
        context = Context.of(pipeline.request(config)[0], config)
        run_stage(context, encode.STAGE)
        embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
        tables.append(pa.concat_tables([embeddings.read(name) for name in context.generation.shard_names]))
    assert sorted(set(zip(tables[0]["width"].to_pylist(), tables[0]["height"].to_pylist(), strict=True))) == [(1400 + seed, 1300) for seed in range(12)]
    assert all(table == tables[0] for table in tables)


def test_workers_together_take_no_more_memory_for_large_images_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.images.decode._ROOM", Room(256 * 2**20))
    encoded(settings(write_pictures(tmp_path / "small", range(8)), tmp_path / "store", encode={"workers": 4}))
    [large] = large_images.write(tmp_path / "large", "PNG", 8000, 1).iterdir()  # 256 MB, decoded
    for copy in range(3):
        (tmp_path / "large" / f"copy-{copy}.png").write_bytes(large.read_bytes() + bytes(1 + copy))  # a decoder does not read beyond the image's end
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at the memory in use
    before = large_images.peak()
    encoded(settings(tmp_path / "large", tmp_path / "store", encode={"workers": 4}))
    assert large_images.peak() - before < 700
