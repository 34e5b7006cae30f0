"""Requests of gsec to an S3 store, by kind, and how long they take.

    python -m benchmarks.s3 --shards 10000 --images 1000000

Makes a store with a finished and published run: this many shards of `images`, `embeddings` (8 dimensions) and `thumbnails` (empty), and the result's
tables. Puts it on moto's server, and uses it through a proxy that counts requests; in the second pass the proxy delays each answer by 30 ms. Printed for
each part of gsec: seconds, requests by kind, and MiB of the answers. The source is a local Parquet file, so listing the images makes no requests to
the store.

* **nothing to do?**: the check of `gsec run` in a night with nothing new
* **the result again**: the result that it prints then
* **ingest, something new**: the comparison with the image list, which is needed as soon as one image is new
* **encode, listing**: finding out which shards of a stage are done
* **encode, live rows**: what a process reads before its first shard
* **encode, one shard**: reading its list, encoding its images (local) with encoder `lite`, and writing two tables
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.results import finishing
from gsec_core.settings import load_config
from gsec_core.stages import align, base, encode, lineage, publish, refit
from gsec_core.stages.base import Context
from gsec_core.stages.ingest import compare, open_images
from gsec_core.store import Store
from gsec_core.store.arrays import to_column
from gsec_core.tables import (
    ASSIGNMENTS,
    ASSIGNMENTS_TABLE,
    CLUSTER_NAMES,
    CLUSTER_NAMES_TABLE,
    CLUSTERS,
    CLUSTERS_TABLE,
    EMBEDDINGS_TABLE,
    EMERGING,
    EMERGING_TABLE,
    FRESH,
    LINEAGE,
    LINEAGE_TABLE,
    MISSING,
    OK,
    REFIT,
    REFIT_TABLE,
    THUMBNAILS,
    THUMBNAILS_TABLE,
    embeddings_schema,
    vector,
)
from tests.s3_proxy import S3Proxy, s3_behind_proxy

DIMENSIONS, CLUSTERS_MADE, PART_ROWS = 8, 10, 65_536
MEMORY = "memory://made/store"
PUTS_AT_ONCE = 8


def settings(directory: Path, store: str, options: argparse.Namespace) -> PipelineConfig:
    return load_config(
        overrides={
            "source": str(directory / "images.parquet"),
            "store": store,
            "corpus": "made",
            "clusters": CLUSTERS_MADE,
            "ingest": {"shard_rows": -(-options.images // options.shards)},
        }
    )


def write_source(directory: Path, images: int) -> None:
    """Write a Parquet file with ``images`` rows of the same small picture."""
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 60).convert("RGB").save(buffer, "JPEG")
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(images, np.int32)), pa.array([buffer.getvalue()]))
    pq.write_table(pa.table({"image": column.cast(pa.binary())}), directory / "images.parquet", row_group_size=10_000)


def make(config: PipelineConfig) -> None:
    """Make a finished and published run, in memory."""
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    live, n = context.live, context.live.num_rows
    base.begin(context, encode.STAGE)
    facts = {"preprocessing": dict(encode.STAGE.load(config).preprocessing), MISSING: 0}
    schema = embeddings_schema(DIMENSIONS, DIMENSIONS)
    vectors = np.full((config.ingest.shard_rows, DIMENSIONS), DIMENSIONS**-0.5, np.float16)
    for name, table in context.corpus.images.read_each(context.generation.shard_names):
        count = table.num_rows
        rows = {
            "image_id": table["image_id"],
            "content_hash": table["image_id"],
            **dict.fromkeys(("embedding", "joint"), to_column(vectors[:count], vector(DIMENSIONS))),
            **dict.fromkeys(("width", "height"), np.full(count, 32)),
            "status": [OK] * count,
            "reason": pa.nulls(count, pa.string()),
        }
        context.shards(encode.STAGE, EMBEDDINGS_TABLE).commit(name, pa.table([rows[field.name] for field in schema], schema=schema), facts)
        context.shards(encode.STAGE, THUMBNAILS_TABLE).commit(name, THUMBNAILS.empty_table())
    parts = [f"part-{number:05d}" for number in range(-(-n // PART_ROWS))]
    planned = {
        refit.STAGE.name: {REFIT_TABLE: ["all"], EMERGING_TABLE: ["all"]},
        align.STAGE.name: {ASSIGNMENTS_TABLE: parts, CLUSTERS_TABLE: ["all"]},
        publish.STAGE.name: {CLUSTER_NAMES_TABLE: ["all"]},
        lineage.STAGE.name: {LINEAGE_TABLE: ["all"]},
    }
    for stage in run.request()["stages"]:
        if stage == encode.STAGE.name:
            continue
        tables = planned.get(stage, {stage: ["all"]})
        run.begin_stage(stage, "0" * 32, tables)
        if stage not in planned:
            context.shards(pipeline.stage(stage), stage).commit("all", pa.table({"nothing": [0]}))
        if stage == refit.STAGE.name:
            decided = {"decision": FRESH, "why": "made up", "images": n, "fitted_images": n, "left_out": []}
            context.shards(refit.STAGE, REFIT_TABLE).commit("all", pa.Table.from_pylist([decided], REFIT))
            context.shards(refit.STAGE, EMERGING_TABLE).commit("all", EMERGING.empty_table())
    for number, part in enumerate(parts):
        context.shards(align.STAGE, ASSIGNMENTS_TABLE).commit(part, _assignments(live.slice(number * PART_ROWS, PART_ROWS)))
    numbers = np.arange(CLUSTERS_MADE)
    ones = np.ones(CLUSTERS_MADE)
    sizes = np.full(CLUSTERS_MADE, n // CLUSTERS_MADE)
    context.shards(align.STAGE, CLUSTERS_TABLE).commit("all", pa.table([numbers, sizes, *[ones] * 4], schema=CLUSTERS))
    names = [numbers, *[[f"cluster {number}" for number in numbers]] * 2, [[]] * len(numbers), numbers, ["terms"] * len(numbers)]
    context.shards(publish.STAGE, CLUSTER_NAMES_TABLE).commit("all", pa.table(names, schema=CLUSTER_NAMES))
    new = [pa.nulls(len(numbers), LINEAGE.field(name).type) for name in ("previous_cluster", "overlap", "moved")]
    traced = pa.table([numbers, numbers, new[0], new[1], np.zeros(len(numbers)), new[2], [[]] * len(numbers)], schema=LINEAGE)
    context.shards(lineage.STAGE, LINEAGE_TABLE).commit("all", traced, {"moved": 0, "common": 0})
    nothing = {"decision": None, "moved": None, "labellings": [{"labelling": "consensus", "agreement": 1.0}], "remarks": [], "descriptions": None}
    run.finish({"images": n, "rejected": 0, "missing": 0, "clusters": CLUSTERS_MADE, **nothing})
    assert finishing.finish(Context.of(run, config))["published"]


def _assignments(rows: pa.Table) -> pa.Table:
    n = rows.num_rows
    columns = [rows["image_id"], rows["uri"], rows["image_id"], np.arange(n) % CLUSTERS_MADE, *[np.ones(n)] * 4, np.ones(n, bool)]
    return pa.table(columns, schema=ASSIGNMENTS)


def put(bucket: str, endpoint: str) -> int:
    """Copy the store in memory into the bucket. Returns the number of objects."""
    client = boto3.client("s3", endpoint_url=endpoint)
    made = fsspec.filesystem("memory").store

    def put_one(path: str) -> None:
        client.put_object(Bucket=bucket, Key=path.removeprefix("/made/"), Body=made[path].getvalue())

    with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
        return len(list(pool.map(put_one, made)))


@contextmanager
def counted(proxy: S3Proxy, what: str) -> Iterator[None]:
    proxy.count()
    proxy.bytes.clear()
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    mib = sum(proxy.bytes.values()) / 2**20
    requests = ", ".join(f"{kind} {number:,}" for kind, number in proxy.count().items() if number)
    print(f"| {what} | {proxy.delay * 1000:.0f} ms | {seconds:.1f} | {requests} | {mib:.1f} |", flush=True)


def measure(config: PipelineConfig, proxy: S3Proxy, names: Sequence[str], only: bool) -> None:
    """Measure every part, and print a row for each; with ``only``, leave out those that read every shard."""
    with counted(proxy, "nothing to do?"):
        run = pipeline.nothing_to_do(config)
    assert run is not None
    with counted(proxy, "the result again"):
        assert finishing.finish(Context.of(run, config))["published"]
    [step] = encode.STAGE.steps
    context = Context.of(run, config)
    with counted(proxy, "encode, listing"):
        assert not base.missing(context, encode.STAGE, step)
    if only:
        return
    place = pipeline.open_place(config)
    with counted(proxy, "ingest, something new"):
        assert compare(place.corpus, open_images(str(config.source), config.ingest), config.ingest, place.embeddings, 2).none
    with counted(proxy, "encode, live rows"):
        assert context.live.num_rows
    for table in step.tables:
        context.shards(encode.STAGE, table).files.remove(context.shards(encode.STAGE, table).path(names[0]))
    with counted(proxy, "encode, one shard"):
        assert base.work(context, encode.STAGE, step, names[:1])["encoded"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--delay", type=float, default=0.03)
    parser.add_argument("--nothing-new", action="store_true", help="leave out what reads every shard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gsec-s3-") as folder, s3_behind_proxy() as (bucket, proxy):
        directory = Path(folder)
        write_source(directory, options.images)
        made = settings(directory, MEMORY, options)
        started = time.monotonic()
        make(made)
        names = Store.open(MEMORY).corpus("made").generation().shard_names
        objects = put(bucket.removeprefix("s3://"), proxy.upstream)
        fsspec.filesystem("memory").store.clear()
        print(f"{options.images:,} images in {len(names):,} shards, {objects:,} objects, made in {time.monotonic() - started:.0f} s\n")
        print("| | delay | seconds | requests | MiB |\n| --- | --- | --- | --- | --- |")
        config = settings(directory, f"{bucket}/store", options)
        encode.STAGE.load(config)
        for delay in (0.0, options.delay):
            proxy.delay = delay
            measure(config, proxy, names, options.nothing_new)


if __name__ == "__main__":
    main()
