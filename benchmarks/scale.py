"""Seconds, memory and quality of the stages after captions, for so many images that encoding would take hours.

    python -m benchmarks.scale --images 1281167 --clusters 1000 --members 4
    python -m benchmarks.scale --images 1281167 --clusters 1000 --nouns 80000

Writes a corpus as `encode` and `describe` would leave it, and runs the stages of a run one after the other in another process: what a stage has read
stays in memory for the next. Printed: seconds (without the start of the process and its libraries), the peak of anonymous memory (RssAnon of
/proc/self/status) during each stage, and how well the consensus and k-means (one start with as many centres) agree with the planted clusters.

The images are made up so that k-means does not find the truth: vectors of 512 dimensions, in each cluster around three
modes. What the modes of a cluster have in common lies in one subspace; their differences, which are as large, lie in another; noise is
in all dimensions. Descriptions of up to 20,480 images name the cluster, not the mode, and 30% of them name another cluster.

With `--nouns`, the measured stages are `fuse`, with the default and with the published counterparts, and `nouns`, with a vocabulary of this many words
around the images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score

from benchmarks.memory import anonymous_mib, peak
from gsec_core import pipeline
from gsec_core.config import FuseConfig, PipelineConfig, TextConfig
from gsec_core.settings import load_config
from gsec_core.stages import align, baseline, describe, encode, fuse, prepare, prototypes, train, vocabulary
from gsec_core.stages.base import Context, begin, run_stage
from gsec_core.stages.canonical import read_parts, usable
from gsec_core.store import Store
from gsec_core.store.arrays import to_column, to_matrix
from gsec_core.tables import (
    ASSIGNMENTS_TABLE,
    BASELINE_TABLE,
    CAPTION_EMBEDDINGS_TABLE,
    DESCRIBED,
    EMBEDDINGS_TABLE,
    IMAGES,
    REPRESENTATIVE_CAPTIONS,
    REPRESENTATIVE_CAPTIONS_TABLE,
    THUMBNAILS,
    THUMBNAILS_TABLE,
    VOCABULARY_TABLE,
    caption_embeddings_schema,
    embeddings_schema,
    vector,
    vocabulary_schema,
)

DIMENSIONS = 512
RANK = 64
"""Dimensions of the subspace in which clusters differ, and of that in which modes differ."""
MODES = 3
NOISE = 0.35
"""Norm of the noise, as a share of that of the signal, in each of `RANK` dimensions."""
RIGHT = 0.7
MOST_DESCRIBED = 20_480
SHARD_ROWS = 16_384
MEASURED = (baseline.STAGE, fuse.STAGE, prepare.STAGE, train.STAGE, align.STAGE)


def settings(directory: Path, options: argparse.Namespace) -> PipelineConfig:
    return load_config(
        overrides={
            "source": str(directory / "images"),
            "store": str(directory / "store"),
            "corpus": "modes",
            "clusters": options.clusters,
            "baseline": {"n_init": 1},
            "describe": {"captioner": "openai:made-up"},
            "train": {"n_members": options.members, "random_state": options.seed},
        }
    )


def write_corpus(directory: Path, options: argparse.Namespace) -> tuple[str, NDArray[np.int64]]:
    """Write a run whose stages up to describe are complete, with embedded descriptions. Returns its id, and the cluster of each image by number."""
    config = settings(directory, options)
    (directory / "images").mkdir()
    random = np.random.default_rng(options.seed)
    images, clusters = options.images, options.clusters
    truth = random.choice(clusters, images, p=random.dirichlet(np.full(clusters, 5.0)))
    basis = np.linalg.qr(random.standard_normal((DIMENSIONS, 2 * RANK)))[0].T.astype(np.float32)
    centres = random.standard_normal((clusters, RANK)).astype(np.float32) @ basis[:RANK]
    modes = random.standard_normal((clusters, MODES, RANK)).astype(np.float32) @ basis[RANK:]
    store = Store.open(config.store)
    corpus = store.corpus("modes")
    corpus.bind({"url": str(config.source)})
    uris = np.array([f"{number:08d}.jpg" for number in range(images)])
    ids = [xxhash.xxh3_128_digest(uri.encode()) for uri in uris.tolist()]
    parts = [slice(start, start + SHARD_ROWS) for start in range(0, images, SHARD_ROWS)]
    assert corpus.add_generation(corpus.generation(), [_images(uris[part], ids[part]) for part in parts])
    context = Context.of(pipeline.run_of(store, corpus, config, corpus.generation().number), config)
    begin(context, encode.STAGE)
    schema = embeddings_schema(DIMENSIONS, None)
    for name, part in zip(context.generation.shard_names, parts, strict=True):
        label = truth[part]
        signal = centres[label] + modes[label, random.integers(MODES, size=len(label))]
        noise = NOISE * np.sqrt(2) * random.standard_normal((len(label), DIMENSIONS), np.float32)
        columns = {
            "image_id": ids[part],
            "content_hash": ids[part],
            "embedding": _unit(signal + noise),
            "width": np.full(len(label), 640),
            "height": np.full(len(label), 480),
            "status": ["ok"] * len(label),
            "reason": pa.nulls(len(label), pa.string()),
        }
        context.shards(encode.STAGE, EMBEDDINGS_TABLE).commit(name, pa.table([columns[field.name] for field in schema], schema=schema))
        context.shards(encode.STAGE, THUMBNAILS_TABLE).commit(name, THUMBNAILS.empty_table())
    _describe(context, truth, random)
    return context.run.id, truth


def _describe(context: Context, truth: NDArray[np.int64], random: np.random.Generator) -> None:
    """Write descriptions of random images, as stages prototypes and describe would leave them, and their embeddings, as fuse would."""
    clusters = context.config.clusters
    rows = usable(context).rows
    described = np.sort(random.choice(len(truth), min(MOST_DESCRIBED, len(truth) // 4), replace=False))
    said = truth[_numbers(rows)[described]]
    wrong = random.random(len(said)) >= RIGHT
    said[wrong] = random.integers(clusters, size=wrong.sum())
    meanings = random.standard_normal((clusters, DIMENSIONS)).astype(np.float32)
    nobody = np.zeros(len(said), np.int64)
    texts = [f"a thing {label}" for label in said]
    given: dict[str, Any] = {
        **{"prototype": nobody, "band": nobody, "text": texts, "object": pa.nulls(len(said), pa.string()), "attributes": [[]] * len(said)},
        **{name: rows[name].take(pa.array(described)) for name in ("image_id", "content_hash")},
        **{"status": [DESCRIBED] * len(said), "model": ["made-up"] * len(said)},
    }
    begin(context, prototypes.STAGE)
    begin(context, describe.STAGE)
    columns = [given.get(field.name, pa.nulls(len(said), field.type)) for field in REPRESENTATIVE_CAPTIONS]
    captions = pa.table(columns, schema=REPRESENTATIVE_CAPTIONS)
    context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).commit("all", captions)
    begin(context, fuse.STAGE)
    embedded = [np.arange(len(said)), nobody, nobody, texts, _unit(meanings[said])]
    context.shards(fuse.STAGE, CAPTION_EMBEDDINGS_TABLE).commit("all", pa.table(embedded, schema=caption_embeddings_schema(DIMENSIONS)))


def write_vocabulary(directory: Path, options: argparse.Namespace, run: str) -> tuple[str, str]:
    """Write two more runs on the same images: one with the published counterparts, one with `options.nouns` nouns, as `vocabulary` would leave them.

    Returns their ids.
    """
    words = directory / "words.txt"
    words.write_text("\n".join(f"word {number}" for number in range(options.nouns)))
    config = settings(directory, options).model_copy(update={"text": TextConfig(source="nouns", vocabulary=f"file:{words}")})
    store = Store.open(config.store)
    first = Context.of(store.run(run), config)
    context = Context.of(pipeline.run_of(store, first.corpus, config, first.generation.number), config)
    begin(context, encode.STAGE)
    begin(context, vocabulary.STAGE)
    random = np.random.default_rng(options.seed)
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    near = to_matrix(embeddings.read(context.generation.shard_names[0], ["embedding"]), "embedding").astype(np.float32)
    schema, shards = vocabulary_schema(DIMENSIONS), context.shards(vocabulary.STAGE, VOCABULARY_TABLE)
    for number, name in enumerate(vocabulary.STAGE.steps[0].plan(context)):
        numbers = np.arange(number * vocabulary.SHARD_WORDS, min((number + 1) * vocabulary.SHARD_WORDS, options.nouns))
        vectors = near[random.integers(len(near), size=len(numbers))] + 0.05 * random.standard_normal((len(numbers), DIMENSIONS), np.float32)
        shards.commit(name, pa.table([numbers, [f"word {word}" for word in numbers], _unit(vectors)], schema=schema))
    return _published(first), context.run.id


def _published(first: Context) -> str:
    config = first.config.model_copy(update={"fuse": FuseConfig(counterpart="softmax")})
    context = Context.of(pipeline.run_of(Store(first.run.files), first.corpus, config, first.generation.number), config)
    for stage in (encode.STAGE, prototypes.STAGE, describe.STAGE, fuse.STAGE):
        begin(context, stage)
    captions = first.read(fuse.STAGE, CAPTION_EMBEDDINGS_TABLE)
    context.shards(fuse.STAGE, CAPTION_EMBEDDINGS_TABLE).commit("all", captions)
    return context.run.id


def _numbers(rows: pa.Table) -> NDArray[np.int64]:
    """The numbers of images, from their URIs."""
    return np.array([int(uri[:8]) for uri in rows["uri"].to_pylist()])


def _images(uris: NDArray[np.str_], ids: list[bytes]) -> pa.Table:
    count = len(uris)
    return pa.table([ids, uris, np.full(count, 1), ["1"] * count, np.zeros(count, bool)], schema=IMAGES)


def _unit(rows: NDArray[np.float32]) -> pa.Array:
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return to_column(unit, vector(unit.shape[1]))


def measure(directory: Path, options: argparse.Namespace, run: str, stages: list[str]) -> None:
    """Run the stages in this process; print seconds and MiB of each as JSON."""
    context = Context.of(Store.open(str(directory / "store")).run(run), settings(directory, options))
    libraries = anonymous_mib()
    for stage in stages:
        with peak() as memory:
            started = time.monotonic()
            run_stage(context, pipeline.stage(stage))
            seconds = time.monotonic() - started
        print(json.dumps({"stage": stage, "seconds": seconds, "peak": memory.mib, "libraries": libraries}), flush=True)


def nmi(directory: Path, options: argparse.Namespace, run: str, truth: NDArray[np.int64]) -> tuple[float, float]:
    """NMI of k-means and of the consensus with the planted clusters."""
    context = Context.of(Store.open(str(directory / "store")).run(run), settings(directory, options))
    found = []
    for stage, table in ((baseline.STAGE, BASELINE_TABLE), (align.STAGE, ASSIGNMENTS_TABLE)):
        rows = read_parts(context, stage, table, ["uri", "cluster"])
        found.append(float(normalized_mutual_info_score(truth[_numbers(rows)], rows["cluster"].to_numpy())))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=80_000)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--nouns", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", nargs="+", metavar=("DIRECTORY", "RUN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        directory, run, *stages = options.measure
        measure(Path(directory), options, run, stages)
        return
    with tempfile.TemporaryDirectory() as name:
        run, truth = write_corpus(Path(name), options)
        print(
            f"{options.images:,} images of {DIMENSIONS} + {DIMENSIONS} dimensions, {options.clusters} clusters, {options.members} members, seed {options.seed}"
        )
        measured = {run: {stage.name: stage.name for stage in MEASURED}}
        if options.nouns:
            described, chosen = write_vocabulary(Path(name), options, run)
            measured = {run: {"fuse": "fuse"}, chosen: {"nouns": "nouns"}, described: {"fuse": "fuse by softmax"}}
        print(f"| stage | seconds | times {next(iter(measured[run]))} | peak anonymous MiB |\n| --- | --- | --- | --- |")
        seconds: dict[str, float] = {}
        for of_run, stages in measured.items():
            passed = [f"--{key}={getattr(options, key)}" for key in ("images", "clusters", "members", "seed")]
            command = [sys.executable, "-m", "benchmarks.scale", *passed, "--measure", name, of_run, *stages]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for done in (json.loads(line) for line in process.stdout if line.startswith("{")):
                    label = stages[done["stage"]]
                    seconds[label] = done["seconds"]
                    times = done["seconds"] / next(iter(seconds.values()))
                    print(f"| {label} | {done['seconds']:.1f} | {times:.2f} | {done['peak']:.0f} (libraries {done['libraries']:.0f}) |", flush=True)
            if process.returncode:
                raise SystemExit(process.returncode)
        if options.nouns:
            return
        ours = sum(seconds[stage] for stage in ("prepare", "train", "align"))
        print(f"\nprepare to align: {ours:.0f} s, {ours / seconds['baseline']:.1f} times k-means.")
        kmeans, consensus = nmi(Path(name), options, run, truth)
        print(f"NMI with the planted clusters: k-means {kmeans:.4f}, consensus {consensus:.4f}.")


if __name__ == "__main__":
    main()
