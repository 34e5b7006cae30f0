"""Bad input in the stages: sources with paths that lead outside, sources that change during a run, full or forbidden stores."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from gsec_core import pipeline
from gsec_core.errors import Refused, Unreachable
from gsec_core.stages import encode
from gsec_core.stages.base import Context, begin, missing, run_stage, work
from gsec_core.tables import EMBEDDINGS_TABLE

from ..bad_files import Outcome
from ..disks import Disk, as_anyone, counted_disk, mounted_disk
from ..pictures import cluster, encoded, labels, picture, settings, write_pictures
from ..sources.examples import add
from .steps import run_stages


def outcomes(context: Context) -> dict[str, Outcome]:
    """URI -> the outcome that stage encode recorded for it."""
    return {row["uri"]: Outcome(row["status"], row["reason"]) for row in encode.encoded_rows(context).to_pylist()}


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG")
    return buffer.getvalue()


# Sources with paths that lead outside


def test_members_of_a_tar_that_lead_outside_are_rejected_and_the_others_are_clustered(tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(jpeg(99))
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "x.tar", "w") as tar:
        for seed in range(4):
            add(tar, f"{seed}.jpg", jpeg(seed))
        add(tar, "../outside.jpg", jpeg(10))
        add(tar, f"{tmp_path}/outside.jpg", jpeg(11))
        add(tar, "link.jpg", type=tarfile.SYMTYPE, linkname="../outside.jpg")
        add(tar, "twin.jpg", type=tarfile.LNKTYPE, linkname="../outside.jpg")
        add(tar, "zero.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
    context, _, _ = cluster(settings(tmp_path / "in" / "x.tar", tmp_path / "store"))
    assert set(labels(context)) == {f"x.tar#{seed}.jpg" for seed in range(4)}
    assert {uri: outcome for uri, outcome in outcomes(context).items() if outcome.status != "ok"} == {
        "x.tar#../outside.jpg": Outcome("rejected", "the path leaves its folder"),
        f"x.tar#{tmp_path}/outside.jpg": Outcome("rejected", "the path is absolute"),
        "x.tar#link.jpg": Outcome("rejected", "a link in the tar, not a plain file"),
        "x.tar#twin.jpg": Outcome("rejected", "a link in the tar, not a plain file"),
        "x.tar#zero.jpg": Outcome("rejected", "a device in the tar, not a plain file"),
    }
    assert (tmp_path / "outside.jpg").read_bytes() == jpeg(99)


def test_paths_and_urls_in_the_rows_of_a_parquet_file_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(jpeg(99))
    paths = ["http://127.0.0.1:9/a.jpg", f"file://{tmp_path}/outside.jpg", f"{tmp_path}/outside.jpg", f"simplecache::file://{tmp_path}/outside.jpg"]
    rows = [{"bytes": jpeg(seed), "path": path} for seed, path in enumerate(paths)] + [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    context = run_stages(settings(tmp_path / "x.parquet", tmp_path / "store"), encode.STAGE)
    ok, none = Outcome("ok"), Outcome("rejected", "no image bytes in the row")
    assert [outcome for _, outcome in sorted(outcomes(context).items())] == [ok] * 4 + [none] * 4


# Sources that change between ingest and encode


def listed(source: Path, store: Path) -> Context:
    """A run that has listed its source and has encoded nothing yet."""
    config = settings(source, store)
    run, _ = pipeline.request(config)
    return Context.of(run, config)


def test_files_that_change_between_ingest_and_encode_are_encoded_as_they_are_at_encode(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(7))
    context = listed(source, tmp_path / "store")
    (source / "000.jpg").unlink()
    (source / "001.jpg").chmod(0)
    (source / "002.jpg").write_bytes(b"")
    (source / "003.jpg").unlink()
    (source / "003.jpg").mkdir()
    (source / "004.jpg").write_bytes((source / "005.jpg").read_bytes())
    as_anyone(lambda: run_stage(context, encode.STAGE))
    found = outcomes(context)
    assert found["000.jpg"] == Outcome("missing", "the file is gone")
    assert found["001.jpg"] == Outcome("missing", "permission denied")
    assert found["002.jpg"] == Outcome("rejected", "empty file")
    assert found["003.jpg"] == Outcome("rejected", "not a regular file")
    assert {found[f"{number:03d}.jpg"] for number in (4, 5, 6)} == {Outcome("ok")}


def test_an_image_that_was_missing_is_clustered_once_it_can_be_read(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(6))
    (source / "000.jpg").chmod(0)
    (source / "link.jpg").symlink_to("later.jpg")
    config = settings(source, tmp_path / "store")
    before, _, _ = as_anyone(lambda: cluster(config))
    assert set(labels(before)) == {f"{number:03d}.jpg" for number in range(1, 6)}
    (source / "000.jpg").chmod(0o644)
    (source / "later.jpg").write_bytes(jpeg(7))
    after, changes, made = as_anyone(lambda: cluster(config))
    assert (changes.added, changes.changed) == (1, 2)
    assert made["encode"]["encoded"] == 3
    assert len(labels(after)) == 8


def test_there_is_nothing_to_do_while_missing_images_still_cannot_be_read(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(6))
    (source / "000.jpg").chmod(0)
    (source / "link.jpg").symlink_to("later.jpg")
    config = settings(source, tmp_path / "store")
    context, _, _ = as_anyone(lambda: cluster(config))
    finished = as_anyone(lambda: pipeline.nothing_to_do(config))
    assert finished is not None
    assert finished.id == context.run.id


def test_images_of_a_tar_that_changed_after_ingest_are_missing_until_it_is_listed_again(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"

    def write(seeds: range) -> None:
        with tarfile.open(tar, "w") as file:
            for seed in seeds:
                add(file, f"{seed}.jpg", jpeg(seed))

    write(range(4))
    context = listed(tar, tmp_path / "store")
    write(range(5))
    run_stage(context, encode.STAGE)
    assert set(outcomes(context).values()) == {Outcome("missing", "the file changed after it was listed")}
    again, _, _ = encoded(settings(tar, tmp_path / "store"))
    assert list(outcomes(again).values()) == [Outcome("ok")] * 5


# Full disks


@pytest.fixture(params=["counted", "mounted"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk without any room, simulated or really mounted; mounting needs root and is skipped without it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "counted":
        yield counted_disk(folder, monkeypatch)
        return
    with mounted_disk(folder) as mounted:
        if mounted is None:
            pytest.skip("nothing may be mounted here")
        yield mounted


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("bad-input") / "in", range(20))


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return labels(cluster(settings(source, tmp_path_factory.mktemp("undisturbed")))[0])


def shards_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.parquet")}


def test_a_run_whose_store_is_full_several_times_ends_with_the_labels_of_an_undisturbed_run(source: Path, undisturbed: dict[str, int], disk: Disk) -> None:
    config = settings(source, disk.folder / "store")
    size, failures, committed = 49_152, [], {}
    while True:
        disk.resize(size)
        try:
            context, _, _ = cluster(config)
            break
        except OSError as error:
            failures.append(str(error))
        there = shards_in(disk.folder)
        assert committed.items() <= there.items(), "a committed shard is gone or changed"
        assert not list(disk.folder.rglob(".tmp-*"))
        committed, size = there, size + 49_152
    assert len(failures) >= 4
    assert len(committed) >= 4
    for said in failures:
        assert said.startswith(f"[Errno 28] No space left on device; make room on its disk: '{disk.folder}/store/")
    assert labels(context) == undisturbed


def test_a_run_is_refused_if_its_store_is_full_at_the_start(source: Path, disk: Disk) -> None:
    (disk.folder / "ballast").touch()
    disk.resize(4096)
    (disk.folder / "ballast").write_bytes(bytes(4096))
    with pytest.raises(Refused, match=r"--store .*/disk/store: cannot be written \(.*No space left on device.*\)\. Choose another store"):
        pipeline.request(settings(source, disk.folder / "store"))


def test_a_full_scratch_disk_stops_the_run_which_goes_on_once_there_is_room(source: Path, undisturbed: dict[str, int], disk: Disk, tmp_path: Path) -> None:
    disk.resize(16_384)
    config = settings(source, tmp_path / "store", scratch=str(disk.folder))
    with pytest.raises(OSError, match=r"No space left on device.*/disk'"):
        cluster(config)
    committed = shards_in(tmp_path)
    assert committed
    disk.resize(16_000_000)
    context, _, made = cluster(config)
    assert committed.items() <= shards_in(tmp_path).items()
    assert made["encode"] == {}
    assert labels(context) == undisturbed


# Forbidden stores


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_store_that_becomes_forbidden_between_two_shards_keeps_the_first(source: Path, undisturbed: dict[str, int], tmp_path: Path, mode: int) -> None:
    context = listed(source, tmp_path / "store")
    begin(context, encode.STAGE)
    [step] = encode.STAGE.steps
    first, *others = missing(context, encode.STAGE, step)
    work(context, encode.STAGE, step, [first])
    directory = Path(context.shards(encode.STAGE, EMBEDDINGS_TABLE).location(first)).parent
    committed = shards_in(tmp_path)
    directory.chmod(mode)
    with pytest.raises(PermissionError, match=rf"Permission denied; allow this user to read and write there: '{directory}"):
        as_anyone(lambda: work(context, encode.STAGE, step, others))
    directory.chmod(0o755)
    assert committed.items() <= shards_in(tmp_path).items()
    again, _, made = cluster(settings(source, tmp_path / "store"))
    assert made["encode"]["shards"] == len(others)
    assert labels(again) == undisturbed


def test_a_run_is_refused_if_its_store_cannot_be_written_at_the_start(source: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o555)
    with pytest.raises(Refused, match=r"--store .*/store: cannot be written \(.*Permission denied.*\)\. Choose another store"):
        as_anyone(lambda: pipeline.request(settings(source, tmp_path / "store")))


# A lost network


def test_a_store_whose_server_goes_away_between_two_shards_keeps_the_first(source: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(source, bucket)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)  # a second server before the same buckets
    server.start()
    host, port = server.get_host_and_port()
    s3fs.S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as through_the_door:
        through_the_door.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        through_the_door.setenv("AWS_MAX_ATTEMPTS", "2")
        run, _ = pipeline.request(config)
        context = Context.of(run, config)
        begin(context, encode.STAGE)
        [step] = encode.STAGE.steps
        first, *others = missing(context, encode.STAGE, step)
        work(context, encode.STAGE, step, [first])
        server.stop()
        with pytest.raises(Unreachable, match=f"store {bucket} does not answer: .*http://{host}:{port}"):
            work(context, encode.STAGE, step, others)
    s3fs.S3FileSystem.clear_instance_cache()
    run, _ = pipeline.request(config)
    assert run_stage(Context.of(run, config), encode.STAGE)["shards"] == len(others)
