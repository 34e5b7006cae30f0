"""Time of the answers of `gsec serve` about a finished run, and memory of the server.

    python -m benchmarks.explore --images 10000 --clusters 50
    python -m benchmarks.explore --images 1000000 --clusters 1000

Writes the tables of a finished run with the vector lengths of the encoder `lite`, starts the server, and sends every kind of request: twice with no other
client, then for half a minute by five clients at once. For comparison there is `/health`, whose answer needs no data. Printed at the end is
the server's memory: VmRSS, VmHWM and RssAnon of /proc/PID/status.

The images are made up: unit vectors around a centre for each cluster. Thumbnails are those of 200 small pictures.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.images.decode import thumbnail
from gsec_core.settings import load_config
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import PART_ROWS
from gsec_core.store import Publication, Store
from gsec_core.store.arrays import to_column
from gsec_core.tables import (
    ASSIGNMENTS,
    ASSIGNMENTS_TABLE,
    CLUSTER_NAMES,
    CLUSTER_NAMES_TABLE,
    CLUSTERS,
    CLUSTERS_TABLE,
    COUNTERPART_MODEL,
    COUNTERPART_MODEL_TABLE,
    DUPLICATES,
    DUPLICATES_TABLE,
    EMBEDDINGS_TABLE,
    FEATURES,
    FEATURES_TABLE,
    HEAD,
    HEAD_TABLE,
    HIERARCHY,
    HIERARCHY_TABLE,
    IMAGES,
    LAYOUT,
    LAYOUT_TABLE,
    LINEAGE,
    LINEAGE_TABLE,
    MAP,
    MAP_TABLE,
    REPRESENTATIVE_CAPTIONS,
    REPRESENTATIVE_CAPTIONS_TABLE,
    THUMBNAILS,
    THUMBNAILS_TABLE,
    embeddings_schema,
)
from tests.pictures import picture

DIM, JOINT = 1280, 384
SHARD_ROWS = 2048
AXES = 64
"""Principal axes of each half of the made-up features."""
SECONDS = 30.0
POLYGON = "0.2,0.2,0.5,0.1,0.6,0.5,0.3,0.6"
WORDS = ("a dog", "sports car", "a bird on a branch", "violin", "mountains at night")


def settings(directory: Path, clusters: int) -> PipelineConfig:
    return load_config(
        overrides={
            "source": str(directory / "images"),
            "store": str(directory / "store"),
            "corpus": "made-up",
            "clusters": clusters,
            "pipeline": "made-up",
        }
    )


class Maker:
    """Writes the tables of a run without running its stages."""

    def __init__(self, directory: Path, images: int, clusters: int) -> None:
        (directory / "images").mkdir()
        self.random = np.random.default_rng(0)
        self.n, self.k = images, clusters
        store = Store.open(str(directory / "store"))
        corpus = store.corpus("made-up")
        config = settings(directory, clusters)
        corpus.bind({"url": str(config.source)})
        self.uris = np.array([f"{number // 1000:04d}/{number:08d}.jpg" for number in range(self.n)])
        self.ids = np.frombuffer(b"".join(xxhash.xxh3_128_digest(uri.encode()) for uri in self.uris.tolist()), "V16")
        self.truth = self.random.choice(self.k, self.n, p=self.random.dirichlet(np.full(self.k, 5.0))).astype(np.int32)
        self.shards = [slice(start, min(start + SHARD_ROWS, self.n)) for start in range(0, self.n, SHARD_ROWS)]
        assert corpus.add_generation(corpus.generation(), [self.images(part) for part in self.shards])
        self.run = pipeline.run_of(store, corpus, config, corpus.generation().number)
        self.context = Context.of(self.run, config)
        self.encode()
        self.align()
        self.publish()
        self.run.finish({"images": self.n, "rejected": 0, "missing": 0, "clusters": self.k, "moved": None, "agreement": 0.9, "published": True})
        publication = Publication("made-up", 1, self.run.id, "made-up", 1, "", self.k, None, None, "2026-01-01T00:00:00+00:00")
        assert store.publications.add(publication)

    def tables(self, stage: str, tables: Mapping[str, Mapping[str, pa.Table]]) -> None:
        """Write the tables of one stage: table -> shard -> rows."""
        fingerprint = xxhash.xxh3_128_hexdigest(stage.encode())
        if stage == "encode":
            fingerprint = pipeline.stage("encode").fingerprint(self.context)
        self.run.begin_stage(stage, fingerprint, {table: list(shards) for table, shards in tables.items()})
        for table, shards in tables.items():
            for name, rows in shards.items():
                self.context.corpus.table(table, fingerprint).commit(name, rows)

    def images(self, part: slice) -> pa.Table:
        count = part.stop - part.start
        versions = [f"{1_600_000_000_000_000_000 + 10**12 * number}-1" for number in range(part.start, part.stop)]
        return pa.table([_binary(self.ids[part]), self.uris[part], np.full(count, 1), versions, np.zeros(count, bool)], schema=IMAGES)

    def encode(self) -> None:
        fingerprint = pipeline.stage("encode").fingerprint(self.context)
        names = self.context.generation.shard_names
        self.run.begin_stage("encode", fingerprint, {EMBEDDINGS_TABLE: names, THUMBNAILS_TABLE: names})
        schema = embeddings_schema(DIM, JOINT)
        pictures = [thumbnail(picture(seed), 96) for seed in range(200)]
        centres = {width: self.random.standard_normal((self.k, width), np.float32) for width in (DIM, JOINT)}
        for name, part in zip(names, self.shards, strict=True):
            count = part.stop - part.start
            columns: dict[str, Any] = {
                **{"image_id": _binary(self.ids[part]), "content_hash": _binary(self.ids[part])},
                **{"width": np.full(count, 640), "height": np.full(count, 480), "status": ["ok"] * count, "reason": pa.nulls(count, pa.string())},
            }
            for column, width in (("embedding", DIM), ("joint", JOINT)):
                vectors = centres[width][self.truth[part]] + self.random.standard_normal((count, width), np.float32)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                columns[column] = to_column(vectors.astype(np.float16), schema.field(column).type)
            self.context.corpus.table(EMBEDDINGS_TABLE, fingerprint).commit(name, pa.table([columns[field.name] for field in schema], schema=schema))
            shown = pa.table([_binary(self.ids[part]), [pictures[number % 200] for number in range(part.start, part.stop)]], schema=THUMBNAILS)
            self.context.corpus.table(THUMBNAILS_TABLE, fingerprint).commit(name, shown)

    def align(self) -> None:
        order = np.argsort([one.tobytes() for one in self.ids])  # the canonical order, as ids and content hashes are the same
        self.order = order
        scores = self.random.random((4, self.n)).astype(np.float32)
        whole = [_binary(self.ids[order]), self.uris[order], _binary(self.ids[order]), self.truth[order], *scores, np.zeros(self.n, bool)]
        table = pa.table(whole, schema=ASSIGNMENTS)
        parts = {f"part-{number:05d}": table.slice(number * PART_ROWS, PART_ROWS) for number in range(-(-self.n // PART_ROWS))}
        numbers, sizes = np.arange(self.k), np.bincount(self.truth, minlength=self.k)
        some = self.random.random((4, self.k)).astype(np.float32)
        weights = self.random.standard_normal((self.k, 2 * AXES)).astype(np.float32)
        self.tables(
            "align",
            {
                HEAD_TABLE: {"all": pa.table([numbers, list(weights), np.zeros(self.k)], schema=HEAD)},
                ASSIGNMENTS_TABLE: parts,
                CLUSTERS_TABLE: {"all": pa.table([numbers, sizes, *some], schema=CLUSTERS)},
            },
        )
        halves = []
        for half, width in (("image", DIM), ("text", JOINT)):
            basis = np.linalg.qr(self.random.standard_normal((width, AXES)))[0].astype(np.float32)
            halves.append({"half": half, "mean": np.zeros(width), "basis": basis.ravel(), "scale": np.full(AXES, 0.1)})
        self.tables("prepare", {FEATURES_TABLE: {"all": pa.Table.from_pylist(halves, FEATURES)}})
        model = {"kind": "joint", "text_weight": 0.2, "held_out_cosine": None, "mean": None, "weights": None}
        self.tables("fuse", {COUNTERPART_MODEL_TABLE: {"all": pa.Table.from_pylist([model], COUNTERPART_MODEL)}})

    def publish(self) -> None:
        numbers, order = np.arange(self.k), self.order
        names = [f"thing {number}" for number in numbers]
        given = [numbers, names, [f"Mostly {name}s." for name in names], [[name, "smooth"] for name in names], numbers, ["terms"] * self.k]
        sample = order[: min(self.n, 5000)]
        points = self.random.random((2, len(sample))).astype(np.float32)
        layout = [_binary(self.ids[sample]), self.uris[sample], self.truth[sample], ["sample"] * len(sample), *points]
        self.tables("publish", {CLUSTER_NAMES_TABLE: {"all": pa.table(given, schema=CLUSTER_NAMES)}, LAYOUT_TABLE: {"all": pa.table(layout, schema=LAYOUT)}})
        places = pa.table([_binary(self.ids[order]), *self.random.random((2, self.n)).astype(np.float32)], schema=MAP)
        parts = {f"part-{number:05d}": places.slice(number * PART_ROWS, PART_ROWS) for number in range(-(-self.n // PART_ROWS))}
        self.tables("map", {MAP_TABLE: parts})
        nothing = [pa.nulls(self.k, LINEAGE.field(name).type) for name in ("previous_cluster", "overlap")]
        below = [1] * self.k  # number of clusters below each cluster and node; nodes are joined in order, and the new node is appended
        rows = [(self.k + node, 2 * node, 2 * node + 1, node / self.k) for node in range(self.k - 1)]
        sizes = np.bincount(self.truth, minlength=self.k).tolist()
        for _, left, right, _ in rows:
            below.append(below[left] + below[right])
            sizes.append(sizes[left] + sizes[right])
        columns = [*map(list, zip(*rows, strict=True)), below[self.k :], sizes[self.k :], [f"kind {node}" for node in range(self.k - 1)]]
        self.tables("hierarchy", {HIERARCHY_TABLE: {"all": pa.table(columns, schema=HIERARCHY)}})
        lineage = [numbers, numbers, *nothing, np.zeros(self.k, np.int64), pa.nulls(self.k, pa.float32()), [[]] * self.k]
        self.tables("lineage", {LINEAGE_TABLE: {"all": pa.table(lineage, schema=LINEAGE)}})
        twins = order[: self.n // 20 // 2 * 2]
        pairs = np.arange(len(twins)) // 2
        first = np.arange(len(twins)) % 2 == 0
        duplicates = [pairs, _binary(self.ids[twins]), self.uris[twins], np.where(first, 1, 0.95), first, first]
        self.tables("duplicates", {DUPLICATES_TABLE: {"all": pa.table(duplicates, schema=DUPLICATES)}})
        self.tables("describe", {REPRESENTATIVE_CAPTIONS_TABLE: {"all": REPRESENTATIVE_CAPTIONS.empty_table()}})


def _binary(ids: NDArray[np.void]) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])


class Server:
    """`gsec serve` in a process of its own."""

    def __init__(self, store: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", "from flows.cli import main; main()", "serve", "--store", store, "--port", str(port)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def __enter__(self) -> "Server":
        while True:
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
            except httpx.TransportError:
                assert self._process.poll() is None, "the server has ended"
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()

    def memory(self) -> dict[str, float]:
        """VmRSS, VmHWM and RssAnon of the server, in GiB."""
        lines = (line.split() for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        return {line[0][:-1]: int(line[1]) / 2**20 for line in lines if line[0] in ("VmRSS:", "VmHWM:", "RssAnon:")}


Ask = Callable[[random.Random], tuple[str, str, bytes | None]]


def questions(run: str, ids: list[str], keys: list[int], upload: bytes) -> dict[str, Ask]:
    """Kind of answer -> function that makes a random request: method, address and body."""
    api, page = f"/api/v1/runs/{run}", f"/runs/{run}"

    def get(address: Callable[[random.Random], str]) -> Ask:
        return lambda rng: ("GET", address(rng), None)

    def image(rng: random.Random) -> str:
        return rng.choice(ids)

    def key(rng: random.Random) -> int:
        return rng.choice(keys)

    return {
        "/health": get(lambda rng: "/health"),
        "all runs": get(lambda rng: "/"),
        "API: clusters": get(lambda rng: f"{api}/clusters"),
        "API: one cluster": get(lambda rng: f"{api}/clusters/{key(rng)}"),
        "API: a cluster's images": get(lambda rng: f"{api}/images?cluster={key(rng)}&limit=60"),
        "API: all images by date": get(lambda rng: f"{api}/images?sort=date&limit=60&offset={rng.randrange(5000)}"),
        "API: images in a part of the map": get(lambda rng: f"{api}/images?within={POLYGON}&limit=60"),
        "API: a thumbnail": get(lambda rng: f"{api}/images/{image(rng)}/thumbnail"),
        "API: one image": get(lambda rng: f"{api}/images/{image(rng)}"),
        "API: search by an image": get(lambda rng: f"{api}/search?like={image(rng)}&limit=60"),
        "API: search by words": get(lambda rng: f"{api}/search?q={rng.choice(WORDS)}&limit=60"),
        "API: search by an upload": lambda rng: ("POST", f"{api}/search?limit=60", upload),
        "API: map": get(lambda rng: f"{api}/map"),
        "API: duplicates": get(lambda rng: f"{api}/duplicates?limit=50"),
        "API: tree": get(lambda rng: f"{api}/tree?groups=10"),
        "page: clusters": get(lambda rng: f"{page}/explore"),
        "page: a cluster": get(lambda rng: f"{page}/clusters/{key(rng)}"),
        "page: one image": get(lambda rng: f"{page}/images/{image(rng)}"),
        "page: search by words": get(lambda rng: f"{page}/search?q={rng.choice(WORDS)}"),
        "page: search by an image": get(lambda rng: f"{page}/search?like={image(rng)}"),
        "page: map": get(lambda rng: f"{page}/map"),
        "page: duplicates": get(lambda rng: f"{page}/duplicates"),
        "page: curation": get(lambda rng: f"{page}/curation"),
    }


def ask(client: httpx.Client, question: tuple[str, str, bytes | None]) -> tuple[float, int, bytes]:
    """Send a request. Returns milliseconds, status and bytes of the answer."""
    method, address, body = question
    began = time.perf_counter()
    answer = client.request(method, address, content=body, headers={"Content-Type": "image/jpeg"} if body else {})
    return 1000 * (time.perf_counter() - began), answer.status_code, answer.content


def crowd(url: str, asked: Mapping[str, Ask], clients: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each kind of answer for ``clients`` clients at once, each of which sends all requests over and over, in random order."""
    times: dict[str, list[float]] = {kind: [] for kind in asked}
    until = time.monotonic() + seconds

    def one(number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=url, timeout=120) as client:
            while time.monotonic() < until:
                for kind in rng.sample(list(asked), len(asked)):
                    took, status, _ = ask(client, asked[kind](rng))
                    assert status == 200, (kind, status)
                    times[kind].append(took)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--clusters", type=int, default=50)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--directory", type=Path, help="Where the store is written, and stays; one that is there is used.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        made = directory / "made.json"
        if not made.exists():
            directory.mkdir(exist_ok=True)
            maker = Maker(directory, options.images, options.clusters)
            ids = [one.tobytes().hex() for one in maker.ids[maker.random.integers(0, maker.n, 500)]]
            made.write_text(json.dumps({"run": maker.run.id, "ids": ids}))
            del maker
        told = json.loads(made.read_text())
        with Server(str(directory / "store")) as server:
            report(server, questions(told["run"], told["ids"], list(range(options.clusters)), thumbnail(picture(1), 512)), options)


def report(server: Server, asked: Mapping[str, Ask], options: argparse.Namespace) -> None:
    rng = random.Random(0)
    alone: dict[str, tuple[float, float, float]] = {}
    with httpx.Client(base_url=server.url, timeout=600) as client:
        for kind, question in asked.items():
            first, status, _ = ask(client, question(rng))
            if status == 404:
                print(f"{kind}: not there")
                continue
            assert status == 200, (kind, status)
            second, _, data = ask(client, question(rng))
            alone[kind] = first, second, len(data) / 1000
    print(f"{options.images:,} images, {options.clusters} clusters, {len(os.sched_getaffinity(0))} cores; alone: {_memory(server)}")
    together = crowd(server.url, {kind: asked[kind] for kind in alone}, options.clients, options.seconds)
    print(f"| answer | kB | first, ms | second, ms | {options.clients} clients: median, ms | 95th percentile, ms | asked |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, (first, second, size) in alone.items():
        median, high = np.percentile(together[kind], [50, 95])
        print(f"| {kind} | {size:.1f} | {first:.0f} | {second:.0f} | {median:.0f} | {high:.0f} | {len(together[kind])} |")
    print(f"memory of the server: {_memory(server)}")


def _memory(server: Server) -> str:
    return ", ".join(f"{name} {size:.2f} GiB" for name, size in server.memory().items())


if __name__ == "__main__":
    main()
