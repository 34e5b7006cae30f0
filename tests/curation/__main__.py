"""The long proof that the log of curation loses nothing: ``python -m tests.curation --acts 10000``.

Two processes write to a log in one folder; they are killed (SIGKILL) and restarted all the while. Each records in a synced file of its own which acts it
was told are in the log. In the end all of these must be there, numbers must have no gap, and the replay must equal one done image by image. Then the log
is replayed on a million images.
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
    """Append acts until the log has ``most`` of them, or the process is killed."""
    log, random = Log(LocalFiles(str(folder / "store")), "nightly"), Random(f"{name} {life}")
    descriptor = os.open(folder / f"{name}-{life}", os.O_WRONLY | os.O_CREAT)
    number = 0
    while number < most:
        act = log.append(lambda before: random_act(random, before, name))
        number = act.number
        os.write(descriptor, f"{json.dumps(asdict(act))}\n".encode())
        os.fsync(descriptor)


def main() -> None:
    """Run the proof and print its results; raises AssertionError if anything is lost."""
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
    assert all(there[act["number"]] == act for act in promised), "an act is lost although its writer was told that it is in the log"
    print(f"{len(found):,} acts by 2 writers, {killed} kills: all {len(promised):,} that were told are there; read in {seconds:.1f} s")
    few = model()
    assert told(replay(found, few), few) == slowly(found, few), "the replay differs from one done image by image"
    many = model(images=given.images, clusters=1_000)
    began = time.monotonic()
    curated = replay(found, many)
    seconds = time.monotonic() - began
    print(f"replayed on {given.images:,} images in 1,000 clusters in {seconds:.1f} s: {len(curated.clusters):,} clusters, {len(curated.open):,} acts open")


def write_and_kill(folder: Path, acts: int) -> int:
    """Let two writers write ``acts`` acts and kill them now and then. Returns how many were killed."""
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
        time.sleep(random.uniform(0.05, 0.5) * (1 + there / 400))  # a restarted writer first reads the whole log
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
