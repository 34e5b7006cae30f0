"""How close the client of the describe stage comes to the rate of vLLM's own serving benchmark.

    make real-parts && python -m benchmarks.describe --images 192 --rounds 3

Starts the development server of deployments/vllm on this machine, or uses the one at ``--url`` (then ``--model`` and
``--tokenizer`` must be given for it). Each round asks about new images, so that nothing is cached, in three ways, whose order
changes: `vllm bench serve`; the client, with requests made in advance; and the client as the stage uses it, which
reads, decodes, shrinks and encodes each image meanwhile. All send the same text, pattern and image size at temperature 0, and
the same number of requests at once. Printed are images/s, the ratio of each to the benchmark's, and the client's CPU time for an
image; then the client's rate by the number of requests at once.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.encode import write_photographs
from gsec_core.captioners import Answer, Subject, background
from gsec_core.captioners.openai import OpenAICaptioner
from gsec_core.captioners.template import SENTENCE_PATTERN, prompt
from gsec_core.config import DescribeConfig
from gsec_core.images import decode as images
from gsec_core.images.decode import content_hash

ROOT = Path(__file__).parents[1]
VLLM = ROOT / ".venv-vllm/bin"
PORT = 8123
MAX_TOKENS = 256
"""Maximal tokens of a reply; a random model writes long words."""


class Served(NamedTuple):
    """Address and name of a served model, and the folder of its tokenizer."""

    url: str
    model: str
    tokenizer: str


class Measured(NamedTuple):
    """Result of one way of asking."""

    rate: float
    """Images/s."""
    cpu: float
    """CPU seconds of this process for each image."""


@contextmanager
def development_server(folder: Path) -> Iterator[Served]:
    script = [str(VLLM / "python"), str(ROOT / "deployments/vllm/dev.py")]
    place = [str(folder), "--port", str(PORT)]
    subprocess.run([*script, "start", *place], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Served(f"http://127.0.0.1:{PORT}/v1", "tiny", str(folder))
    finally:
        subprocess.run([*script, "stop", *place], check=True)


def captioner(served: Served, at_once: int) -> OpenAICaptioner:
    config = DescribeConfig(captioner=f"openai:{served.model}", url=served.url, concurrency=at_once, max_tokens=MAX_TOKENS)
    asking = OpenAICaptioner(served.model, config)
    asking.check()
    assert asking.form == "enforced by the server", asking.form
    return asking


def subjects(files: Sequence[Path]) -> list[Subject]:
    return [Subject(file.name, content_hash(file.read_bytes()), file.read_bytes) for file in files]


def measured(work: Sequence[Coroutine[Any, Any, Any]], keep: int) -> tuple[list[Any], Measured]:
    """Run all coroutines, ``keep`` at a time. Returns their results, and rate and CPU time."""

    async def together() -> list[Any]:
        place = asyncio.Semaphore(keep)

        async def one(item: Coroutine[Any, Any, Any]) -> Any:
            async with place:
                return await item

        return await asyncio.gather(*map(one, work))

    started, cpu = time.perf_counter(), time.process_time()
    done = background.start(together()).result()
    return done, Measured(len(work) / (time.perf_counter() - started), (time.process_time() - cpu) / len(work))


def prepared(served: Served, at_once: int, files: Sequence[Path]) -> Measured:
    """Measure the client with requests made in advance."""
    asking = captioner(served, at_once)
    contents = [asking._content(subject) for subject in subjects(files)]
    replies, found = measured([asking._chat.ask(content, 0, MAX_TOKENS) for content in contents], len(files))
    assert all(reply.finish == "stop" for reply in replies)
    return found


def end_to_end(served: Served, at_once: int, files: Sequence[Path]) -> Measured:
    """Measure the client as the stage uses it."""
    asking = captioner(served, at_once)
    answers, found = measured([asking.describe(subject) for subject in subjects(files)], asking.concurrency)
    assert all(isinstance(answer, Answer) and answer.text for answer in answers)
    return found


def vllm_benchmark(served: Served, at_once: int, files: Sequence[Path], folder: Path) -> Measured:
    """Run vLLM's own benchmark. It reads images of the size that the client sends, and makes its requests before its clock starts."""
    lines = []
    for file in files:
        small = folder / f"small-{file.name}"
        small.write_bytes(images.thumbnail(images.decode(file.read_bytes()), DescribeConfig().image_size))
        lines.append({"content": [{"type": "text", "text": prompt(None)}, {"type": "image", "image": str(small)}]})
    data = folder / "requests.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [str(VLLM / "vllm"), "bench", "serve", "--backend", "openai-chat", "--base-url", served.url.removesuffix("/v1")]
    command += ["--endpoint", "/v1/chat/completions", "--model", served.model, "--tokenizer", served.tokenizer]
    command += ["--dataset-name", "custom_image", "--dataset-path", str(data), "--custom-ensure-client-side-data", "--disable-shuffle"]
    command += ["--custom-output-len", str(MAX_TOKENS), "--num-prompts", str(len(files)), "--max-concurrency", str(at_once), "--temperature", "0"]
    command += ["--extra-body", json.dumps({"structured_outputs": {"regex": SENTENCE_PATTERN}})]
    command += ["--save-result", "--result-dir", str(folder), "--result-filename", "result.json"]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (len(files), 0)
    return Measured(result["request_throughput"], float("nan"))


def compare(served: Served, at_once: int, count: int, rounds: int, folder: Path) -> None:
    found: dict[str, list[Measured]] = {"vllm bench serve": [], "the client, requests made in advance": [], "the client as the stage uses it": []}
    photographs = iter(write_and_list(folder / "photographs", 3 * count * rounds))
    for number in range(rounds):
        ways = [
            ("vllm bench serve", lambda files: vllm_benchmark(served, at_once, files, folder)),
            ("the client, requests made in advance", lambda files: prepared(served, at_once, files)),
            ("the client as the stage uses it", lambda files: end_to_end(served, at_once, files)),
        ]
        for name, way in ways[number % 3 :] + ways[: number % 3]:
            found[name].append(way([next(photographs) for _ in range(count)]))
    peer = statistics.median(one.rate for one in found["vllm bench serve"])
    print(f"{count} images a round, {rounds} rounds, {at_once} requests at once; medians")
    for name, rows in found.items():
        rate, cpu = statistics.median(row.rate for row in rows), statistics.median(row.cpu for row in rows)
        cpu_ms = "" if math.isnan(cpu) else f"{1000 * cpu:6.1f} ms CPU an image"
        spread = f"{min(row.rate for row in rows):.1f} to {max(row.rate for row in rows):.1f}"
        print(f"{name:<40}{rate:6.2f} images/s ({spread})  {rate / peer:5.2f} of the benchmark  {cpu_ms}")


def sweep(served: Served, count: int, folder: Path) -> None:
    photographs = iter(write_and_list(folder / "more", 7 * count))
    print(f"requests at once and images/s, {count} images each:")
    for at_once in (1, 4, 8, 16, 32, 64, 128):
        print(f"{at_once:>6} {prepared(served, at_once, [next(photographs) for _ in range(count)]).rate:7.2f}", flush=True)


def write_and_list(folder: Path, count: int) -> list[Path]:
    write_photographs(folder, count, seed=count)
    return sorted(folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help="images a round and way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=DescribeConfig().concurrency)
    parser.add_argument("--url", help="a server that is there already")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tokenizer", help="folder of its tokenizer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.url:
            measure(Served(options.url, options.model, options.tokenizer), options, folder)
        else:
            with development_server(folder / "model") as served:
                measure(served, options, folder)


def measure(served: Served, options: argparse.Namespace, folder: Path) -> None:
    prepared(served, options.at_once, write_and_list(folder / "warm", 32))
    compare(served, options.at_once, options.images, options.rounds, folder)
    sweep(served, options.images, folder)


if __name__ == "__main__":
    main()
