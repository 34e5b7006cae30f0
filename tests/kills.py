"""Proves that a killed run resumes: after SIGKILL at random moments it ends with the labels of an undisturbed run.

    python -m tests.kills --images 2000 --times 20
    python -m tests.kills --images 2000 --at train --at align --set method=tac
    python -m tests.kills --images 2000 --new 100 --at refit --at align
    python -m tests.kills --images 600 --times 20 --s3 --delay 0.01
    python -m tests.kills --images 600 --times 20 --nodes 2

Kills alternate between the process and its whole process group. With ``--at`` there is one kill during each named stage, a
moment after Prefect logged the beginning of its flow. Whenever a run finishes, its labels are compared with the undisturbed
run's, and so are all its tables if the store is a folder. The remaining kills hit a new store. It prints how many images were
worked on more than once. With ``--s3`` the stores, except the undisturbed run's, are on moto's S3 server behind a proxy that
delays answers, throttles and resets connections (see `tests.s3_proxy`). With ``--nodes`` the command itself is not killed:
nodes of a real Ray cluster of that many nodes are, and each is replaced by a new one.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from ray._private.node import Node
from ray.cluster_utils import Cluster
from tenacity import retry, retry_if_exception_message, stop_after_attempt

from gsec_core.store import Store
from gsec_core.tables import EMBEDDINGS_TABLE

from .command import GSEC, environment
from .pictures import write_pictures
from .s3_proxy import S3Proxy, s3_behind_proxy

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10-test.parquet"

HEAD = {
    "num_cpus": 0,
    "include_dashboard": False,
    "_system_config": {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 20_000,
        "health_check_failure_threshold": 3,
    },
}
"""The head of a Ray cluster for tests. It takes no slices. It notices a killed node, whose port is closed, within seconds instead of
half a minute, and gives a node that only has no core for a while a minute."""


@retry(retry=retry_if_exception_message(match="The current node timed out during startup"), stop=stop_after_attempt(4), reraise=True)
def add_node(cluster: Cluster) -> Node:
    """Add a node with one core. Ray ends a node that does not start within 15 s, which happens on a busy machine; then another is started."""
    return cluster.add_node(num_cpus=1)


@dataclass
class Attempt:
    """One start of the command."""

    seconds: float
    killed: str
    """What was killed: "process", "group", or nothing."""
    worked_on: int
    """Images encoded or copied, committed or not, by the last line of progress it logged; that line is up to 10 s old if it was killed."""
    result: dict[str, Any] | None
    errors: str


@dataclass
class Round:
    """All attempts from an empty store to a finished run."""

    attempts: list[Attempt] = field(default_factory=list)


def write_cifar(folder: Path, count: int) -> Path:
    """The first ``count`` images of the CIFAR-10 test set as files."""
    folder.mkdir(parents=True)
    for number, row in enumerate(pq.read_table(CIFAR, columns=["image"]).slice(0, count)["image"].to_pylist()):
        (folder / f"{number:05d}.jpg").write_bytes(row["bytes"])
    return folder


def attempt(arguments: list[str], home: Path, kill_after: float | None, group: bool = False, kill_at: str | None = None) -> Attempt:
    """Start `gsec run` and kill it ``kill_after`` seconds later if it still runs; with ``kill_at``, that long after the stage's beginning."""
    started = time.monotonic()
    surroundings = {**environment(home), "PREFECT_LOGGING_LEVEL": "INFO"}
    process = subprocess.Popen([*GSEC, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings, start_new_session=True)
    killed, said = "", ""
    assert process.stderr is not None
    if kill_at is not None:
        for line in process.stderr:
            said += line
            if f"for flow 'gsec-{kill_at}'" in line:
                break
    try:
        out, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        killed = "group" if group else "process"
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        _kill_what_is_left_of(process.pid)  # a surviving child would hold the pipes open
        out, errors = process.communicate()
    errors = said + errors
    counts = re.findall(r"^encode .*? ([\d,]+)(?: of [\d,]+)? images", errors, re.MULTILINE)
    if not killed and process.returncode:
        raise AssertionError(f"exit {process.returncode}\n{errors}")
    result = None if killed else json.loads(out.splitlines()[-1])
    return Attempt(time.monotonic() - started, killed, int(counts[-1].replace(",", "")) if counts else 0, result, errors)


def _kill_what_is_left_of(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def labels(result: dict[str, Any]) -> dict[str, int]:
    """URI -> cluster. Raises AssertionError if an image has two rows or none."""
    filesystem, folder = fsspec.core.url_to_fs(result["assignments"])
    table = ds.dataset(folder, filesystem=filesystem).to_table(columns=["uri", "cluster"])
    found = dict(zip(table["uri"].to_pylist(), table["cluster"].to_pylist(), strict=True))
    assert len(found) == table.num_rows == result["images"], f"{table.num_rows} rows of {len(found)} images, {result['images']} listed"
    return found


def tables(store: Path) -> dict[str, pl.DataFrame]:
    """Path -> table, for all tables of a store except the log and the report, whose contents depend on the time."""
    return {str(path.relative_to(store)): pl.read_parquet(path) for path in store.rglob("*.parquet") if not {"log", "report"} & set(path.parts)}


def assert_equal_tables(store: Path, expected: dict[str, pl.DataFrame]) -> None:
    """Raises AssertionError if the store has other tables, or a table with other contents."""
    found = tables(store)
    assert found.keys() == expected.keys()
    assert [name for name in found if not found[name].equals(expected[name])] == []


def committed(store: str) -> int:
    """How many shards of embeddings the store has."""
    return sum(len(shards.names()) for corpus in Store.open(store).corpora() for shards in corpus.tables(EMBEDDINGS_TABLE))


def prove(source: Path, times: int, seed: int, settings: list[str], directory: Path, say: Any = print, stores: str | None = None) -> list[Round]:
    """Kill ``times`` runs, finish, compare. Raises AssertionError if a label or a table differs, or an image has not exactly one row.

    Stores are made in ``directory``, or below the URL ``stores`` if it is given; the undisturbed run's store is always in ``directory``.
    Only the tables of stores in ``directory`` are compared.
    """
    moments = random.Random(seed)

    def arguments(store: str) -> list[str]:
        return ["run", str(source), "--store", store, "--json", *settings]

    home = directory / "prefect"
    what = "labels" if stores else "tables"
    undisturbed = attempt(arguments(f"{directory}/undisturbed"), home, None)
    assert undisturbed.result is not None
    truth = labels(undisturbed.result)
    say(f"undisturbed: {undisturbed.seconds:.0f} s, {len(truth)} images; seed {seed}")
    rounds = [Round()]
    kills = 0
    while True:
        store = f"{stores or directory}/round-{len(rounds)}"
        moment = moments.uniform(1, undisturbed.seconds) if kills < times else None
        made = attempt(arguments(store), home, moment, group=kills % 2 == 1)
        rounds[-1].attempts.append(made)
        if made.killed:
            kills += 1
            shards = committed(store)
            say(f"kill {kills} ({made.killed}) after {made.seconds:.1f} s: {made.worked_on} images worked on, {shards} shards committed so far")
            continue
        assert made.result is not None
        assert labels(made.result) == truth, "the labels differ from the undisturbed run's"
        if stores is None:
            assert_equal_tables(Path(store), tables(directory / "undisturbed"))
        worked_on = sum(done.worked_on for done in rounds[-1].attempts)
        again = max(0, worked_on - len(truth))
        say(f"round {len(rounds)} finished: equal {what}, each image once; by what its attempts reported, {again} images were encoded again")
        if kills == times:
            return rounds
        rounds.append(Round())


def prove_at(
    source: Path, stages: list[str], seed: int, settings: list[str], directory: Path, say: Any = print, new: int = 0, stores: str | None = None
) -> None:
    """Kill one run during each of ``stages``, finish, compare. Raises AssertionError as `prove` does, and if a stage ended before its kill.

    With ``new``, a first run lacks that many of the images; the second run, in which they appear, is the one that is killed.
    """
    moments = random.Random(seed)
    home = directory / "prefect"
    results = {}
    for name in ("undisturbed", "killed"):
        store = f"{stores}/killed" if stores and name == "killed" else str(directory / name)
        arguments = ["run", str(source), "--store", store, "--json", *settings]
        if new:
            aside = [path.rename(directory / path.name) for path in sorted(source.iterdir())[-new:]]
            attempt(arguments, home, None)
            for path in aside:
                path.rename(source / path.name)
        for number, stage in enumerate(stages if name == "killed" else []):
            moment = moments.uniform(0, 0.5)
            assert attempt(arguments, home, moment, group=number % 2 == 1, kill_at=stage).killed, f"stage {stage} was over in {moment:.2f} s"
            say(f"killed {moment:.2f} s into {stage}")
        results[name] = attempt(arguments, home, None).result
    assert results["undisturbed"] is not None
    assert results["killed"] is not None
    if new:
        assert results["killed"]["decision"] == results["undisturbed"]["decision"]
        say(results["killed"]["decision"])
    assert labels(results["undisturbed"]) == labels(results["killed"]), "the labels differ from the undisturbed run's"
    if stores is None:
        assert_equal_tables(directory / "killed", tables(directory / "undisturbed"))
    say(f"finished: equal {'labels' if stores else 'tables'}, each image once")


def prove_nodes(source: Path, times: int, seed: int, settings: list[str], directory: Path, nodes: int, say: Any = print) -> None:
    """Kill ``times`` nodes during runs that must finish nevertheless. Raises AssertionError as `prove` does. The undisturbed run is on threads."""
    moments, home = random.Random(seed), directory / "prefect"
    undisturbed = attempt(["run", str(source), "--store", str(directory / "undisturbed"), "--json", *settings], home, None)
    assert undisturbed.result is not None
    truth = labels(undisturbed.result)
    say(f"undisturbed, on threads: {undisturbed.seconds:.0f} s, {len(truth)} images; seed {seed}")
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    there = [add_node(cluster) for _ in range(nodes)]
    kills = rounds = 0
    try:
        while kills < times:
            rounds += 1
            store = directory / f"round-{rounds}"
            on_ray = ["--set", "engine=ray", "--set", f"ray.address={cluster.address}"]
            command = [*GSEC, "run", str(source), "--store", str(store), "--json", *settings, *on_ray]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(home))
            began, lost = time.monotonic(), 0
            while kills < times:
                try:
                    process.wait(moments.uniform(1, undisturbed.seconds / 2))
                    break
                except subprocess.TimeoutExpired:
                    cluster.remove_node(there.pop(moments.randrange(nodes)), allow_graceful=False)
                    there.append(add_node(cluster))
                    kills, lost = kills + 1, lost + 1
            out, errors = process.communicate()
            assert process.returncode == 0, errors
            assert labels(json.loads(out.splitlines()[-1])) == truth, "the labels differ from the undisturbed run's"
            say(f"round {rounds} finished in {time.monotonic() - began:.0f} s, {lost} nodes lost ({kills} in all): equal labels, each image once")
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--at", action="append", metavar="STAGE")
    parser.add_argument("--new", type=int, default=0, help="with --at: a night without so many images comes before; the one in which they come is killed")
    parser.add_argument("--s3", action="store_true", help="the stores that are killed at are on S3, behind a proxy with faults")
    parser.add_argument("--delay", type=float, default=0.03, help="with --s3: seconds before each answer")
    parser.add_argument("--slow-down", type=float, default=0.01, help="with --s3: share of the requests answered 503, every second one after it was done")
    parser.add_argument("--reset", type=float, default=0.01, help="with --s3: share of the requests whose connection is reset, as above")
    parser.add_argument("--nodes", type=int, default=0, help="nodes of a Ray cluster, which are killed in place of the command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-rows", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="gsec-kills-"))
    with ExitStack() as exits:
        exits.callback(shutil.rmtree, directory)
        stores: str | None = None
        proxy: S3Proxy | None = None
        if options.s3:
            faults = {"delay": options.delay, "slow_down": options.slow_down, "reset": options.reset, "seed": options.seed}
            stores, proxy = exits.enter_context(s3_behind_proxy(**faults))
        cifar = CIFAR.exists()
        source = write_cifar(directory / "in", options.images) if cifar else write_pictures(directory / "in", range(options.images))
        print(f"{options.images} images of {'CIFAR-10' if cifar else 'generated discs'}, encoder lite, {options.shard_rows} images a shard")
        settings = ["-k", "10", *(part for setting in [f"ingest.shard_rows={options.shard_rows}", *options.set] for part in ("--set", setting))]
        if options.nodes:
            prove_nodes(source, options.times, options.seed, settings, directory, options.nodes)
        elif options.at:
            prove_at(source, options.at, options.seed, settings, directory, new=options.new, stores=stores)
        else:
            prove(source, options.times, options.seed, settings, directory, stores=stores)
        if proxy is not None:
            print(f"S3: {dict(proxy.counts)}, failed {dict(proxy.failed)}")


if __name__ == "__main__":
    main()
