"""Seconds and memory of every stage after encoding, at a size for which encoding would take hours.

    python -m benchmarks.scale --images 100000 --clusters 100

Writes a corpus whose embeddings are random blobs, as `encode` would have left them, and a table of descriptions; then runs each
stage in a process of its own. Printed: seconds (the start of the process and its libraries left out) and the peak of
anonymous memory, RssAnon of /proc/self/status, of which the libraries alone are the first line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from gsec_core import pipeline
from gsec_core.arrays import to_column
from gsec_core.config import PipelineConfig
from gsec_core.settings import load_config
from gsec_core.stages import encode
from gsec_core.stages.base import Context, begin, run_stage
from gsec_core.store import Store
from gsec_core.tables import EMBEDDINGS_TABLE, IMAGES, THUMBNAILS, THUMBNAILS_TABLE, embeddings_schema, vector

SHARD_ROWS = 2048
WORDS = ("red", "green", "blue", "old", "new", "small", "large", "wooden", "round", "flat", "bright", "dark", "soft", "rough", "wet", "dry")


def settings(directory: Path, clusters: int) -> PipelineConfig:
    describe = {"captioner": f"table:{directory / 'captions.parquet'}:text"}
    return load_config(
        overrides={"source": str(directory / "images"), "store": str(directory / "store"), "corpus": "blobs", "clusters": clusters, "describe": describe}
    )


def write_corpus(directory: Path, images: int, clusters: int) -> str:
    """A run whose stage encode is complete. Returns its id."""
    config = settings(directory, clusters)
    (directory / "images").mkdir()
    random = np.random.default_rng(0)
    truth = random.choice(clusters, images, p=random.dirichlet(np.full(clusters, 3.0)))
    uris = np.array([f"{number:08d}.jpg" for number in range(images)])
    texts = [f"This image contains a thing {label} characterised by {', '.join(random.choice(WORDS, 2))} and {random.choice(WORDS)}." for label in truth]
    pl.DataFrame({"uri": uris, "text": texts}).write_parquet(directory / "captions.parquet")
    store = Store.open(config.store)
    corpus = store.corpus("blobs")
    corpus.bind({"url": str(config.source)})
    ids = [xxhash.xxh3_128_digest(uri.encode()) for uri in uris.tolist()]
    parts = [slice(start, start + SHARD_ROWS) for start in range(0, images, SHARD_ROWS)]
    listed = [_images(uris[part], ids[part]) for part in parts]
    assert corpus.add_generation(corpus.generation(), listed)
    run = pipeline.run_of(store, corpus, config, corpus.generation().number)
    context = Context.of(run, config)
    begin(context, encode.STAGE)
    centres, joint_centres = random.normal(size=(clusters, 1280)), random.normal(size=(clusters, 384))
    for name, part in zip(context.generation.shard_names, parts, strict=True):
        label = truth[part]
        columns = {
            "image_id": ids[part],
            "content_hash": ids[part],
            "embedding": _unit(centres[label] + 2 * random.normal(size=(len(label), 1280))),
            "joint": _unit(joint_centres[label] + 2 * random.normal(size=(len(label), 384))),
            "width": np.full(len(label), 640),
            "height": np.full(len(label), 480),
            "status": ["ok"] * len(label),
            "reason": pa.nulls(len(label), pa.string()),
        }
        schema = embeddings_schema(1280, 384)
        context.shards(encode.STAGE, EMBEDDINGS_TABLE).commit(name, pa.table({field.name: columns[field.name] for field in schema}, schema=schema))
        context.shards(encode.STAGE, THUMBNAILS_TABLE).commit(name, THUMBNAILS.empty_table())
    return run.id


def _images(uris: np.ndarray, ids: list[bytes]) -> pa.Table:
    count = len(uris)
    return pa.table([ids, uris, np.full(count, 1), ["1"] * count, np.zeros(count, bool)], schema=IMAGES)


def _unit(rows: np.ndarray) -> pa.Array:
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return to_column(rows, vector(rows.shape[1]))


def anonymous_mib() -> float:
    """Anonymous memory of this process now."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def measure(directory: Path, clusters: int, run: str, stage: str) -> None:
    """Run one stage in this process; print seconds and MiB as JSON."""
    context = Context.of(Store.open(str(directory / "store")).run(run), settings(directory, clusters))
    libraries = anonymous_mib()
    peak, over = libraries, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    run_stage(context, pipeline.stage(stage))
    seconds = time.monotonic() - started
    over.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "peak": peak, "libraries": libraries}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--measure", nargs=3, metavar=("DIRECTORY", "RUN", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        directory, run, stage = options.measure
        measure(Path(directory), options.clusters, run, stage)
        return
    with tempfile.TemporaryDirectory() as name:
        run = write_corpus(Path(name), options.images, options.clusters)
        print(f"{options.images} images as blobs of 1280 + 384 dimensions, {options.clusters} clusters")
        print("| stage | seconds | peak anonymous MiB |\n| --- | --- | --- |")
        for stage in pipeline.STAGES[1:]:
            command = [sys.executable, "-m", "benchmarks.scale", "--clusters", str(options.clusters), "--measure", name, run, stage.name]
            done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
            print(f"| {stage.name} | {done['seconds']:.1f} | {done['peak']:.0f} (libraries {done['libraries']:.0f}) |", flush=True)


if __name__ == "__main__":
    main()
