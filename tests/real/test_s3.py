"""A store on an S3 server that throttles and loses connections and replies; and the number of requests to it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from gsec_core import pipeline
from gsec_core.results import finishing
from gsec_core.stages import base, encode
from gsec_core.stages.base import Context
from gsec_core.store import Shards
from gsec_core.store.files import RemoteFiles, open_files
from gsec_core.tables import ASSIGNMENTS_TABLE, EMBEDDINGS_TABLE

from ..pictures import cluster, settings, write_pictures
from ..s3_proxy import S3Proxy, s3_behind_proxy

IMAGES, SHARDS = 20, 3

PART = 5 * 2**20
"""The smallest part that a multipart upload may have, in bytes."""


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, S3Proxy]]:
    with s3_behind_proxy() as place:
        yield place


@pytest.fixture
def proxy(s3: tuple[str, S3Proxy]) -> Iterator[S3Proxy]:
    """The proxy without faults; faults that a test sets are removed after it."""
    _, proxy = s3
    proxy.count()
    yield proxy
    proxy.delay = proxy.slow_down = proxy.reset = 0
    proxy.expired = False
    proxy.losing.clear()
    proxy.failed.clear()


@pytest.fixture
def files(s3: tuple[str, S3Proxy], request: pytest.FixtureRequest) -> RemoteFiles:
    found = open_files(f"{s3[0]}/{request.node.name}")
    assert isinstance(found, RemoteFiles)
    return found


def tables(context: Context) -> dict[str, pa.Table]:
    """Every table of a run's stages except the report's, in the order of the plan."""
    found = {}
    for record in context.run.stages().values():
        for table, names in record["tables"].items():
            if table != "report":
                found[table] = pa.concat_tables(context.run.place(record).table(table, record["fingerprint"]).read_all(names))
    return found


@pytest.fixture(scope="module")
def clustered(s3: tuple[str, S3Proxy], tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A published run that was made while the store had faults."""
    url, proxy = s3
    source = write_pictures(tmp_path_factory.mktemp("s3") / "in", range(IMAGES))
    proxy.slow_down, proxy.reset = 0.01, 0.005
    context, _, made = cluster(settings(source, f"{url}/faults", clusters=3))
    assert finishing.finish(context)["published"]
    assert made["encode"]["encoded"] == IMAGES
    assert sum(proxy.failed.values()) > 5
    proxy.slow_down = proxy.reset = 0
    return context


def test_a_run_on_an_s3_store_with_faults_makes_the_same_tables_as_in_a_folder(tmp_path: Path, clustered: Context) -> None:
    source = Path(str(clustered.config.source))
    here, _, _ = cluster(settings(source, tmp_path / "store", clusters=3))
    ours, theirs = tables(here), tables(clustered)
    assert theirs.keys() == ours.keys()
    uris = theirs[ASSIGNMENTS_TABLE]["uri"].to_pylist()
    assert sorted(uris) == sorted(path.name for path in source.iterdir()), "each image must have one row"
    for table in ours:
        assert theirs[table] == ours[table], table


def test_the_number_of_requests_of_a_run_to_its_store_is_limited(tmp_path: Path, s3: tuple[str, S3Proxy], proxy: S3Proxy) -> None:
    source = write_pictures(tmp_path / "in", range(IMAGES))
    config = settings(source, f"{s3[0]}/bounds")
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    base.begin(context, encode.STAGE)
    [step] = encode.STAGE.steps
    encode.STAGE.load(config)
    assert context.live.num_rows == IMAGES
    proxy.count()
    names = base.missing(context, encode.STAGE, step)
    listing = proxy.count()
    assert listing["LIST"] <= 2 * len(step.tables), "one listing per table, and one more to be sure if it is empty"
    assert base.work(context, encode.STAGE, step, names)["shards"] == SHARDS
    work = proxy.count()
    assert work["PUT"] == SHARDS * len(step.tables), "one per shard and table"
    assert sum(work.values()) <= 40 + SHARDS * 8, "for each shard, its list is read (2 requests) and two tables are written (3 requests each)"


def test_a_night_without_changes_reads_no_shard_of_the_corpus(clustered: Context, proxy: S3Proxy) -> None:
    proxy.paths.clear()
    run = pipeline.nothing_to_do(clustered.config)
    assert run is not None
    assert finishing.finish(Context.of(run, clustered.config))["published"]
    lists = proxy.count()["LIST"]
    tables = sum(len(record["tables"]) for record in run.stages().values())
    assert lists <= 2 * tables + 10, "each table once or twice, and the folders of the run, the generations and the publications"
    assert pipeline.request(clustered.config)[1].none, "a deployed run begins with this request, which must find no changes"
    asked = "\n".join(proxy.paths)
    assert "/assignments/" in asked, "the result must be read, unlike the shards of the corpus"
    assert not [name for name in clustered.generation.shard_names if name in asked]


def test_two_concurrent_runs_of_a_stage_both_succeed_and_each_shard_is_there_once(tmp_path: Path, s3: tuple[str, S3Proxy], proxy: S3Proxy) -> None:
    config = settings(write_pictures(tmp_path / "in", range(IMAGES)), f"{s3[0]}/two")
    run, _ = pipeline.request(config)
    contexts = [Context.of(run, config) for _ in range(2)]
    looked = threading.Barrier(2)

    def work(context: Context) -> dict[str, float]:
        base.begin(context, encode.STAGE)
        [step] = encode.STAGE.steps
        looked.wait(60)  # both find that nothing is done
        return base.work(context, encode.STAGE, step, step.plan(context))

    with ThreadPoolExecutor() as pool:
        assert [made["shards"] for made in pool.map(work, contexts)] == [SHARDS] * 2
    names = contexts[0].generation.shard_names
    embeddings = contexts[0].shards(encode.STAGE, EMBEDDINGS_TABLE)
    assert embeddings.names() == set(names)
    assert sum(table.num_rows for table in embeddings.read_all(names)) == IMAGES


def test_of_two_concurrent_writers_who_both_find_no_shard_exactly_one_wins(files: RemoteFiles, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, exists = threading.Barrier(2), files._filesystem.exists

    def both_look(where: str) -> bool:
        found: bool = exists(where)
        looked.wait(60)
        return found

    monkeypatch.setattr(files._filesystem, "exists", both_look)
    shards = Shards(files, "embeddings")
    written = [pa.table({"writer": [writer]}) for writer in range(2)]
    with ThreadPoolExecutor() as pool:
        won = list(pool.map(partial(shards.commit, "00000"), written))
    assert sorted(won) == [False, True]
    assert shards.read("00000") == written[won.index(True)]
    assert proxy.count()["PUT"] == 2


def test_a_write_whose_reply_was_lost_counts_as_made_by_its_writer(files: RemoteFiles, proxy: S3Proxy) -> None:
    proxy.losing["PUT"] = 0
    assert files.create("generations/1.json", b"mine"), "the driver writes again and must recognise its own file"
    assert proxy.count()["PUT"] == 2
    assert not files.create("generations/1.json", b"mine"), "a second write is another one, even with equal content"


def test_a_write_whose_reply_was_lost_after_another_writers_file_does_not_count_as_made(
    files: RemoteFiles, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = files._filesystem.pipe_file

    def after_another(where: str, data: bytes, **options: object) -> object:
        put(where, b"another's")
        return put(where, data, **options)

    monkeypatch.setattr(files._filesystem, "pipe_file", after_another)
    proxy.losing["PUT"] = 0
    assert not files.create("generations/1.json", b"mine")
    assert files.read("generations/1.json") == b"another's"


def test_an_error_for_expired_credentials_names_the_store_and_the_credentials(files: RemoteFiles, proxy: S3Proxy) -> None:
    assert files.create("table/a", b"a")
    proxy.expired = True
    for use in (lambda: files.create("table/b", b"b"), lambda: files.read("table/a"), lambda: files.files("table")):
        with pytest.raises(PermissionError, match=rf"^store {files.url} refuses access \(.*\)\. Are the credentials right, and not expired\?$"):
            use()


@pytest.mark.parametrize("lost", range(5))
def test_a_multipart_upload_succeeds_although_any_of_its_replies_is_lost(
    files: RemoteFiles, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """The lost reply is that of its beginning, of one of its three parts, or of its end."""
    monkeypatch.setattr(files._filesystem, "pipe_file", partial(files._filesystem.pipe_file, chunksize=PART))
    data = bytes(2 * PART) + b"end"
    proxy.losing["multipart"] = lost
    assert files.create("table/a", data)
    assert proxy.failed["multipart"] == 1
    assert files.read("table/a") == data
    assert not files.create("table/a", bytes(2 * PART))


def test_a_multipart_upload_succeeds_on_a_store_that_throttles(files: RemoteFiles, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files._filesystem, "pipe_file", partial(files._filesystem.pipe_file, chunksize=PART))
    proxy.slow_down, proxy.reset = 0.15, 0.05
    data = bytes(4 * PART)
    assert files.create("table/a", data)
    assert files.read("table/a") == data
