"""Proof that a killed run resumes: SIGKILL at random moments, then the labels of an undisturbed run.

    python -m tests.kills --images 2000 --times 20
    python -m tests.kills --images 2000 --at train --at align --set method=tac

Kills alternate between the process and its whole process group. With ``--at`` there is one as each named stage works, a
moment after it said that it begins. Whenever a run gets through, its labels are compared
with the undisturbed run's and the rest of the kills hit a new store. What was redone is printed: the images that were
worked on beyond the number there are.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from .command import GSEC, environment
from .pictures import write_pictures

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10-test.parquet"


@dataclass
class Attempt:
    """One start of the command."""

    seconds: float
    killed: str
    """What was killed: "process", "group", or nothing."""
    worked_on: int
    """Images encoded or copied by its own last word, committed or not; up to 5 s old where it was killed."""
    result: dict[str, Any] | None
    errors: str


@dataclass
class Round:
    """A store from nothing to a finished run."""

    attempts: list[Attempt] = field(default_factory=list)


def write_cifar(folder: Path, count: int) -> Path:
    """The first ``count`` images of the CIFAR-10 test set as files."""
    folder.mkdir(parents=True)
    for number, row in enumerate(pq.read_table(CIFAR, columns=["image"]).slice(0, count)["image"].to_pylist()):
        (folder / f"{number:05d}.jpg").write_bytes(row["bytes"])
    return folder


def attempt(arguments: list[str], home: Path, kill_after: float | None, group: bool = False, kill_at: str | None = None) -> Attempt:
    """Start `gsec run` and kill it ``kill_after`` seconds later, if it still runs; with ``kill_at`` so long after that stage began."""
    started = time.monotonic()
    process = subprocess.Popen([*GSEC, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(home), start_new_session=True)
    killed, said = "", ""
    assert process.stderr is not None
    if kill_at is not None:
        for line in process.stderr:
            said += line
            if line.startswith(f"{kill_at}: "):
                break
    try:
        out, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        killed = "group" if group else "process"
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        _kill_what_is_left_of(process.pid)  # a temporary Prefect server outlives a killed process, and holds its pipes open
        out, errors = process.communicate()
    errors = said + errors
    counts = re.findall(r"^encode: (\d+) of \d+ images", errors, re.MULTILINE)
    if not killed and process.returncode:
        raise AssertionError(f"exit {process.returncode}\n{errors}")
    result = None if killed else json.loads(out.splitlines()[-1])
    return Attempt(time.monotonic() - started, killed, int(counts[-1]) if counts else 0, result, errors)


def _kill_what_is_left_of(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def labels(result: dict[str, Any]) -> dict[str, int]:
    """URI -> cluster. An image in two rows, or in none, is an AssertionError."""
    table = ds.dataset(result["assignments"]).to_table(columns=["uri", "cluster"])
    found = dict(zip(table["uri"].to_pylist(), table["cluster"].to_pylist(), strict=True))
    assert len(found) == table.num_rows == result["images"], f"{table.num_rows} rows of {len(found)} images, {result['images']} listed"
    return found


def prove(source: Path, times: int, seed: int, settings: list[str], directory: Path, say: Any = print) -> list[Round]:
    """Kill ``times`` runs, finish, compare. Raises AssertionError if a label differs or an image has not exactly one row."""
    moments = random.Random(seed)

    def arguments(store: Path) -> list[str]:
        return ["run", str(source), "--store", str(store), "--json", *settings]

    home = directory / "prefect"
    undisturbed = attempt(arguments(directory / "undisturbed"), home, None)
    assert undisturbed.result is not None
    truth = labels(undisturbed.result)
    say(f"undisturbed: {undisturbed.seconds:.0f} s, {len(truth)} images; seed {seed}")
    rounds = [Round()]
    kills = 0
    while True:
        store = directory / f"round-{len(rounds)}"
        moment = moments.uniform(1, undisturbed.seconds) if kills < times else None
        made = attempt(arguments(store), home, moment, group=kills % 2 == 1)
        rounds[-1].attempts.append(made)
        shards = len(list(store.glob("*/embeddings/*/*.parquet")))
        if made.killed:
            kills += 1
            say(f"kill {kills} ({made.killed}) after {made.seconds:.1f} s: {made.worked_on} images worked on, {shards} shards committed so far")
            continue
        assert made.result is not None
        assert labels(made.result) == truth, "the labels differ from the undisturbed run's"
        worked_on = sum(done.worked_on for done in rounds[-1].attempts)
        again = max(0, worked_on - len(truth))
        say(f"round {len(rounds)} finished: equal labels, each image once; by their last words {again} images were worked on again")
        if kills == times:
            return rounds
        rounds.append(Round())


def prove_at(source: Path, stages: list[str], seed: int, settings: list[str], directory: Path, say: Any = print) -> None:
    """Kill one run as each of ``stages`` works, finish, compare. Raises AssertionError as `prove` does, and if a stage was over too soon."""
    moments = random.Random(seed)
    home = directory / "prefect"
    results = {}
    for name in ("undisturbed", "killed"):
        arguments = ["run", str(source), "--store", str(directory / name), "--json", *settings]
        for number, stage in enumerate(stages if name == "killed" else []):
            moment = moments.uniform(0, 0.5)
            assert attempt(arguments, home, moment, group=number % 2 == 1, kill_at=stage).killed, f"stage {stage} was over in {moment:.2f} s"
            say(f"killed {moment:.2f} s into {stage}")
        results[name] = attempt(arguments, home, None).result
    assert results["undisturbed"] is not None
    assert results["killed"] is not None
    assert labels(results["undisturbed"]) == labels(results["killed"]), "the labels differ from the undisturbed run's"
    say("finished: equal labels, each image once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--at", action="append", metavar="STAGE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-rows", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="gsec-kills-"))
    try:
        cifar = CIFAR.exists()
        source = write_cifar(directory / "in", options.images) if cifar else write_pictures(directory / "in", range(options.images))
        print(f"{options.images} images of {'CIFAR-10' if cifar else 'generated discs'}, encoder lite, {options.shard_rows} images a shard")
        settings = ["-k", "10", *(part for setting in [f"ingest.shard_rows={options.shard_rows}", *options.set] for part in ("--set", setting))]
        if options.at:
            prove_at(source, options.at, options.seed, settings, directory)
        else:
            prove(source, options.times, options.seed, settings, directory)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
