"""The long proof of the log: ``python -m tests.curation --acts 10000``.

Two processes write a log in one folder, and are killed (SIGKILL) and started again all the while. Each notes, in a file of its own that it has synced, what it
was told is in the log. In the end all of that must be there, the numbers without a gap, and the replay what it is an image at a time; then the log is
replayed on a million images.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from random import Random

from gsec_core.curation import Log, replay
from gsec_core.store.files import LocalFiles

from .examples import model, random_act, slowly, told


def write(folder: Path, name: str, life: int, most: int) -> None:
    """Say things until there are ``most`` acts in the log, or the process is killed."""
    log, random = Log(LocalFiles(str(folder / "store")), "nightly"), Random(f"{name} {life}")
    descriptor = os.open(folder / f"{name}-{life}", os.O_WRONLY | os.O_CREAT)
    number = 0
    while number < most:
        act = log.append(lambda before: random_act(random, before, name))
        number = act.number
        os.write(descriptor, f"{json.dumps(asdict(act))}\n".encode())
        os.fsync(descriptor)


def main() -> None:
    """Print what was found; an AssertionError if anything is lost."""
    parser = argparse.ArgumentParser(description="The long proof of the log of curation.")
    parser.add_argument("--acts", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        killed, began = write_and_kill(folder, given.acts), time.monotonic()
        found = Log(LocalFiles(str(folder / "store")), "nightly").read()
        seconds = time.monotonic() - began
        promised = [json.loads(line) for path in sorted(folder.glob("*-*")) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [act.number for act in found] == list(range(1, len(found) + 1)), "a number is left out or given twice"
    there = {act.number: json.loads(json.dumps(asdict(act))) for act in found}
    assert all(there[act["number"]] == act for act in promised), "what somebody was told is lost"
    print(f"{len(found):,} acts by 2 writers, {killed} kills: all {len(promised):,} that were told are there; read in {seconds:.1f} s")
    few = model()
    assert told(replay(found, few), few) == slowly(found, few), "the replay is not what it is an image at a time"
    many = model(images=given.images, clusters=1_000)
    began = time.monotonic()
    curated = replay(found, many)
    seconds = time.monotonic() - began
    print(f"replayed on {given.images:,} images in 1,000 clusters in {seconds:.1f} s: {len(curated.clusters):,} clusters, {len(curated.open):,} acts open")


def write_and_kill(folder: Path, acts: int) -> int:
    """Returns how many writers were killed."""
    random, killed, lives = Random(0), 0, 0
    log = LocalFiles(str(folder / "store"))
    names = ("ann", "bob")
    writers: dict[str, multiprocessing.Process] = {}
    while (there := len(Log(log, "nightly").numbers())) < acts:
        for name in names:
            if name not in writers or not writers[name].is_alive():
                lives += 1
                writers[name] = multiprocessing.Process(target=write, args=(folder, name, lives, acts))
                writers[name].start()
        time.sleep(random.uniform(0.05, 0.5) * (1 + there / 400))  # a new one reads what there is
        writer = writers[random.choice(names)]
        if writer.is_alive():
            writer.kill()
            writer.join()
            killed += writer.exitcode == -9
    for writer in writers.values():
        writer.join()
    return killed


if __name__ == "__main__":
    main()
