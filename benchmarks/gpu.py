"""Speed of gsec on a GPU, part by part, with bounds measured in the same run.

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --quick --device cpu

`encode`: images/s of the stage with open_clip encoders of random weights in bf16, and of its two halves alone: preparing (reading, hashing,
decoding, resizing, normalising and thumbnails, with as many threads as in the stage) and the forward pass on a batch that is on the device
already. `fit`: seconds of `GSEC.fit` by part on made-up embeddings of 512 dimensions; with few rows on the CPU too. `neighbours`: the
index, compared with an exact search by torch on the device. `methods`: every method for a few steps on the device and on the CPU, and how
well their labels agree. If a part fails, that is reported and the other parts still run. The JSON is written after every figure, so that an
interrupted run keeps its figures.
"""

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from gsec_core import GSEC
from gsec_core.clustering import ensemble
from gsec_core.clustering.ensemble import Ensemble
from gsec_core.clustering.neighbors import NeighborIndex
from gsec_core.devices import resolve, thread_count, threads_of_torch, usable_cores
from gsec_core.methods import BUILT_IN
from gsec_core.methods.gsec import bilevel
from gsec_core.methods.gsec.estimator import GSECPlan

DIMENSIONS = 512
RANK = 64
"""Dimensions of the subspace in which clusters differ."""
NOISE = 1.8
"""Deviation of the noise in each of `DIMENSIONS`; that of centres is 1 in each of `RANK`. Enough for clusters to overlap."""

LEAST_SHARE = 0.9
"""Share of the slower half's rate that encoding should reach."""
MOST_SECONDS = 120
"""Seconds that a fit of a million rows should take at most."""
MILLION = 1_000_000

MOST_CPU_ROWS = 50_000
"""Fits of at most this many rows run on the CPU too."""

N_NEIGHBORS = 20
LARGE_BATCH = 256

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "layers": 2, "width": 64, "heads": 2},
}
PREPROCESSING = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "resize_mode": "shortest"}

QUICK = {"images": 96, "models": ["tiny"], "rounds": 1, "rows": [400, 1500], "clusters": [4, 8], "members": 2, "steps": 10, "index_rows": 2000}


class Report:
    """Prints Markdown to standard output, and writes the figures to a JSON file."""

    def __init__(self, file: Path | None) -> None:
        self.figures: dict[str, Any] = {"failed": []}
        self._file = file

    def put(self, figure: Any, *path: str) -> None:
        """Store a figure in the JSON under these nested names."""
        place = self.figures
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = figure
        if self._file:
            self._file.write_text(json.dumps(self.figures, indent=1))

    def say(self, text: str) -> None:
        print(text, flush=True)

    def table(self, columns: Sequence[str]) -> None:
        """Print the head of a table."""
        self.say(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")

    def row(self, *cells: Any) -> None:
        self.say(f"| {' | '.join(str(cell) for cell in cells)} |")

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Context manager that reports and records an exception, so that later parts still run."""
        try:
            yield
        except Exception:  # noqa: BLE001 -- any error, because time on the machine is short
            self.say(f"\n{name} failed:\n\n```\n{traceback.format_exc()}```\n")
            self.put([*self.figures["failed"], name], "failed")


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: str) -> float:
    """Seconds that a call takes, with the work that it leaves to the device."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


@contextmanager
def peak_memory(device: str) -> Iterator[list[float]]:
    """Context manager whose list gets one value at the end: the peak of device memory that torch reserved, in GiB."""
    found: list[float] = []
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    found.append(0.0 if device == "cpu" else torch.cuda.max_memory_reserved(device) / 2**30)


# encode


def write_images(folder: Path, count: int) -> Path:
    """``count`` JPEGs of 640 x 480, smooth with some noise."""
    folder.mkdir(parents=True)

    def write(number: int) -> None:
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 232, (12, 16, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        pixels = np.minimum(np.asarray(coarse), 231) + random.integers(0, 24, (480, 640, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.jpg", quality=90)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(write, range(count)))
    return folder


def write_checkpoint(folder: Path, model: str, device: str) -> Path:
    """Write an open_clip model with random weights, as a folder that gsec accepts."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = TINY if model == "tiny" else open_clip.get_model_config(model)
    torch.manual_seed(0)
    with torch.device(device):
        weights = open_clip.CLIP(**config).state_dict()
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESSING}))
    return folder


def encoding(report: Report, options: argparse.Namespace, device: str) -> None:
    report.say(f"\n## encode: {options.images} made-up JPEGs of 640 x 480, bf16\n")
    with tempfile.TemporaryDirectory(prefix="gsec-gpu-") as name:
        source = write_images(Path(name) / "images", options.images)
        for model in options.models:
            with report.guarded(f"encode {model}"):
                checkpoint = write_checkpoint(Path(name) / model, model, device)
                with peak_memory(device) as peak:
                    _encoding(report, options, device, model, source, checkpoint)
                report.put(peak[0], "encode", model, "peak_gib")
                report.say(f"{model}: at most {peak[0]:.1f} GiB of the device.\n")


def _encoding(report: Report, options: argparse.Namespace, device: str, model: str, source: Path, checkpoint: Path) -> None:
    from gsec_core import pipeline
    from gsec_core.settings import load_config
    from gsec_core.sources import open_source
    from gsec_core.sources.base import ImageRef
    from gsec_core.stages import encode
    from gsec_core.stages.base import Context, run_stage

    chosen = {"encoder": f"open_clip:local-dir:{checkpoint}", "precision": "bf16", "device": device}
    config = load_config(overrides={"source": str(source), "clusters": 2, "encode": chosen})
    encoder = encode.STAGE.load(config)
    opened = open_source(str(source))
    refs = [ImageRef(**row) for row in opened.list().to_pylist()]
    workers, size = thread_count(config.encode.workers), config.encode.batch_size
    batches = -(-len(refs) // size)
    large_batches = -(-len(refs) // LARGE_BATCH)

    def prepare(ref: ImageRef) -> None:
        prepared = encode.prepare(opened, encoder, config.encode.thumbnail_size, {}, ref)
        assert prepared.pixels is not None, prepared.reason

    def prepare_all(**settings: Any) -> None:
        with ThreadPoolExecutor(workers, **settings) as pool:
            for _ in pool.map(prepare, refs):
                pass

    pixels = np.stack([encoder.preprocess(Image.new("RGB", (640, 480)))] * size)

    def forward(rows: int, times: int) -> Callable[[], None]:
        batch = torch.from_numpy(pixels[:1]).to(device, torch.bfloat16).repeat(rows, 1, 1, 1)

        @torch.inference_mode()
        def run() -> None:
            for _ in range(times):
                encoder._model.encode_image(batch)  # type: ignore[attr-defined]

        return run

    def from_host() -> None:
        for _ in range(batches):
            encoder.encode_images(pixels)

    def stage(number: int) -> float:
        settings = config.model_copy(update={"store": str(checkpoint.parent / f"store-{model}-{number}")})
        context = Context.of(pipeline.request(settings)[0], settings)
        return seconds(lambda: run_stage(context, encode.STAGE), device)

    report.table(["model", "round", "prepare/s", "forward/s", "encode/s", "encode / slower half"])
    totals = np.zeros(3)
    for number in range(options.rounds + 1):  # the first round does not count: libraries are loaded and memory is reserved
        took = np.array([seconds(prepare_all, device), seconds(forward(size, batches), device) * len(refs) / (batches * size), stage(number)])
        if number:
            totals += took
            report.row(model, number, *(f"{len(refs) / part:.0f}" for part in took), f"{max(took[:2]) / took[2]:.1%}")
    rates = dict(zip(("prepare", "forward", "encode"), (len(refs) * options.rounds / totals).tolist(), strict=True))
    share = max(totals[:2]) / totals[2]
    report.row(f"**{model}**", "all", *(f"{rate:.0f}" for rate in rates.values()), f"{share:.1%}")
    report.say(f"\n{workers} threads prepare, batch {size}; at least {LEAST_SHARE:.0%} is wanted: {'met' if share >= LEAST_SHARE else 'MISSED'}.")
    report.put({"images": len(refs), "workers": workers, "batch": size, "per_second": rates, "share": float(share)}, "encode", model)

    # Where the time goes.
    more = {
        "forward from the host's memory": batches * size / seconds(from_host, device),
        f"forward, batch {LARGE_BATCH}": LARGE_BATCH * large_batches / seconds(forward(LARGE_BATCH, large_batches), device),
        "prepare, one thread": 1 / _one_thread(report, model, config, opened, encoder, refs[:200]),
        "prepare, each with one thread of torch": len(refs) / seconds(lambda: prepare_all(initializer=torch.set_num_threads, initargs=(1,)), device),
    }
    encode.STAGE.load(config)  # sets torch's threads again
    report.put(more, "encode", model, "more_per_second")
    report.say("Images/s beside: " + ", ".join(f"{name} {rate:.0f}" for name, rate in more.items()) + ".")


def _one_thread(report: Report, model: str, config: Any, source: Any, encoder: Any, refs: Sequence[Any]) -> float:
    """Seconds for each image of preparing with one thread; reports them by part."""
    from gsec_core.images import decode

    spent = dict.fromkeys(("read and hash", "decode", "preprocess", "thumbnail"), 0.0)
    with threads_of_torch(1):
        for ref in refs:
            times = [time.perf_counter()]
            data = source.fetch(ref)
            decode.content_hash(data)
            times.append(time.perf_counter())
            image = decode.decode(data, 2 * max(encoder.side, config.encode.thumbnail_size))
            times.append(time.perf_counter())
            encoder.preprocess(image)
            times.append(time.perf_counter())
            decode.thumbnail(image, config.encode.thumbnail_size)
            times.append(time.perf_counter())
            for name, took in zip(spent, np.diff(times), strict=True):
                spent[name] += float(took) / len(refs)
    report.put({name: 1000 * each for name, each in spent.items()}, "encode", model, "one_thread_ms")
    report.say("One thread, ms an image: " + ", ".join(f"{name} {1000 * each:.2f}" for name, each in spent.items()) + ".")
    return sum(spent.values())


# fit


def made_up(n: int, clusters: int, seed: int, halves: int = 1) -> tuple[list[NDArray[np.float16]], NDArray[np.int64]]:
    """Unit vectors around one centre for each cluster, with other centres in each half; and the clusters."""
    random = np.random.default_rng(seed)
    truth = random.choice(clusters, n, p=random.dirichlet(np.full(clusters, 5.0)))
    found = []
    for half in range(halves):
        basis = np.linalg.qr(random.standard_normal((DIMENSIONS, RANK)))[0].T.astype(np.float32)
        centres = random.standard_normal((clusters, RANK)).astype(np.float32) @ basis
        rows = np.empty((n, DIMENSIONS), np.float16)

        def fill(start: int, half: int = half, centres: NDArray[np.float32] = centres, rows: NDArray[np.float16] = rows) -> None:
            label = truth[start : start + 8192]
            block = centres[label] + NOISE * np.random.default_rng([seed, half, start]).standard_normal((len(label), DIMENSIONS), np.float32)
            rows[start : start + 8192] = block / np.linalg.norm(block, axis=1, keepdims=True)

        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(fill, range(0, n, 8192)))
        found.append(rows)
    return found, truth


class Parts:
    """Measures the seconds of a fit by part, each without the parts inside it. ``told`` is called at the end of each part."""

    PLACES: tuple[tuple[Any, str, str], ...] = (
        (GSECPlan, "halves", "principal axes"),
        (GSECPlan, "features", "features"),
        (NeighborIndex, "__init__", "neighbours, index"),
        (NeighborIndex, "_tune_probes", "neighbours, recall"),
        (NeighborIndex, "search", "neighbours, search"),
        (bilevel, "kmeans_starts", "k-means starts"),
        (GSECPlan, "train", "training"),
        (Ensemble, "aligned", "alignment"),
        (Ensemble, "consensus", "consensus, members' mean"),
        (ensemble, "smooth", "consensus, smoothing"),
        (Ensemble, "by_size", "order by size"),
        (Ensemble, "calibrated", "calibration"),
        (Ensemble, "head", "head"),
    )
    """Owner, attribute, part."""

    def __init__(self, device: str, told: Callable[[str, float], None]) -> None:
        self.seconds = {part: 0.0 for _, _, part in self.PLACES}
        self._device, self._told = device, told
        self._inside = threading.local()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Context manager in which the parts of every fit are timed."""
        with ExitStack() as stack:
            for owner, name, part in self.PLACES:
                found = vars(owner)[name]
                timed: Any = classmethod(self._timed(found.__func__, part)) if isinstance(found, classmethod) else self._timed(found, part)
                stack.enter_context(mock.patch.object(owner, name, timed))
            yield

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            open_parts = self._inside.__dict__.setdefault("open", [])
            open_parts.append(0.0)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(self._device)
                took = time.perf_counter() - started
                own = took - open_parts.pop()
                if open_parts:
                    open_parts[-1] += took
                self.seconds[part] += own
                self._told(part, own)

        return timed


def fit(report: Report, options: argparse.Namespace, device: str, n: int, clusters: int) -> None:
    devices = [device, "cpu"] if n <= MOST_CPU_ROWS and device != "cpu" else [device]
    report.say(f"\n## fit: {n:,} x {DIMENSIONS}, {clusters} clusters, {options.members} members\n")
    [X], truth = made_up(n, clusters, 0)
    found: dict[str, dict[str, float]] = {}
    labels = {}
    name = f"{n} rows"
    for where in devices:
        estimator = GSEC(clusters, n_members=options.members, max_steps=options.fit_steps, device=where)
        GSEC(2, n_members=1, max_steps=2, device=where).fit(X[:200].astype(np.float32))  # libraries load

        def told(part: str, took: float, where: str = where) -> None:
            report.put(took, "fit", name, where, "as_they_end", part)
            if took > 5:
                print(f"  {where}: {part} {took:.1f} s", file=sys.stderr, flush=True)

        parts = Parts(where, told)
        with peak_memory(where) as peak, parts.watched():
            whole = seconds(lambda estimator=estimator: estimator.fit(X), where)  # type: ignore[misc]
        plan = estimator.plan()
        found[where] = {**parts.seconds, "the rest": whole - sum(parts.seconds.values()), "whole": whole}
        labels[where] = estimator.labels_
        step = 1000 * parts.seconds["training"] / (plan.steps(n) * len(plan.blocks))
        figures = {
            "seconds": found[where],
            "step_ms": step,
            "block_members": plan.block_size,
            "blocks": len(plan.blocks),
            "batch": plan.batch(n),
            "ari_truth": float(adjusted_rand_score(truth, labels[where])),
            "peak_gib": peak[0],
        }
        report.put(figures, "fit", name, where)
    report.table(["part", *(f"{where}, s" for where in devices)])
    for part in found[device]:
        report.row(part, *(f"{found[where][part]:.2f}" for where in devices))
    for where in devices:
        figures = report.figures["fit"][name][where]
        report.say(
            f"\n{where}: an outer step {figures['step_ms']:.1f} ms ({figures['block_members']} members, batch {figures['batch']}, {figures['blocks']} blocks), "
            f"ARI with the planted clusters {figures['ari_truth']:.4f}, at most {figures['peak_gib']:.2f} GiB of the device."
        )
    if len(devices) > 1:
        ari = float(adjusted_rand_score(labels[device], labels["cpu"]))
        report.put(ari, "fit", name, "ari_cpu")
        report.say(f"\nARI of the two: {ari:.4f}. The CPU takes {found['cpu']['whole'] / found[device]['whole']:.1f} times as long.")
    if n > MILLION:
        whole = found[device]["whole"]
        report.say(f"\nUnder {MOST_SECONDS} s are wanted: {whole:.0f} s, {'met' if whole < MOST_SECONDS else 'MISSED'}.")


# neighbours


def neighbours(report: Report, options: argparse.Namespace, device: str) -> None:
    n = options.index_rows
    [X], _ = made_up(n, max(options.clusters), 1)
    report.say(f"\n## neighbours: {N_NEIGHBORS} of each of {n:,} x {DIMENSIONS}\n")
    started = time.perf_counter()
    index = NeighborIndex(lambda rows: X[rows], n)
    built = time.perf_counter() - started
    started = time.perf_counter()
    found = index.search(0, n, N_NEIGHBORS)
    searched = time.perf_counter() - started
    exact = np.empty_like(found)

    def search() -> None:
        rows = torch.from_numpy(X).to(device, torch.float32 if device == "cpu" else torch.float16)
        for start in range(0, n, 4096):
            cosines = rows[start : start + 4096] @ rows.T
            itself = torch.arange(len(cosines), device=device)
            cosines[itself, itself + start] = -torch.inf
            exact[start : start + 4096] = cosines.topk(N_NEIGHBORS).indices.cpu().numpy()

    search()  # libraries load
    by_torch = seconds(search, device)
    shared = np.mean([len(np.intersect1d(*pair)) for pair in zip(found[:2000], exact[:2000], strict=True)]) / N_NEIGHBORS
    kind = type(index._index).__name__
    report.table(["search", "seconds"])
    report.row(f"gsec: {kind} of faiss, on the CPU, {usable_cores()} threads: index and recall", f"{built:.2f}")
    report.row("gsec: search", f"{searched:.2f}")
    report.row(f"exact, by torch on {device}", f"{by_torch:.2f}")
    recall = "exact" if index.recall is None else f"recall {index.recall:.4f}"
    report.say(f"\ngsec's: {recall} by itself, and {shared:.1%} of torch's neighbours (which are in half precision on a GPU).")
    figures = {"rows": n, "index": kind, "build": built, "search": searched, "torch": by_torch, "recall": index.recall, "shared": float(shared)}
    report.put(figures, "neighbours")


# methods


def methods(report: Report, options: argparse.Namespace, device: str) -> None:
    n, clusters = min(options.rows), min(options.clusters)
    [X, text], truth = made_up(n, clusters, 2, halves=2)
    nouns = np.stack([X[truth == cluster][:40].mean(0) for cluster in range(clusters)])
    report.say(f"\n## methods: {n:,} x ({DIMENSIONS} + {DIMENSIONS}), {clusters} clusters, {options.steps} steps, 2 members\n")
    report.table(["method", f"{device}, s", "cpu, s", "ARI of the two", f"ARI with the truth, {device}", "cpu", "device GiB"])
    for method in BUILT_IN:
        with report.guarded(f"methods {method.name}"):
            wanted = {"n_clusters": clusters, "n_members": 2, "max_steps": options.steps, "random_state": 0}
            Estimator = method.load()
            known = Estimator._get_param_names()
            given = {"nouns": nouns} if Estimator.NEEDS_NOUNS else {"text": text}
            labels, took = {}, {}
            with peak_memory(device) as peak:
                for kind, where in (("device", device), ("cpu", "cpu")):
                    estimator = Estimator(**{key: value for key, value in {**wanted, "device": where}.items() if key in known})
                    took[kind] = seconds(lambda estimator=estimator, given=given: estimator.fit(X, **given), where)  # type: ignore[misc]
                    assert np.isfinite(estimator.confidence_).all(), "there is a confidence that is no number"
                    labels[kind] = estimator.labels_
            ari = float(adjusted_rand_score(labels["device"], labels["cpu"]))
            truths = {kind: float(adjusted_rand_score(truth, found)) for kind, found in labels.items()}
            cells = (f"{took['device']:.1f}", f"{took['cpu']:.1f}", f"{ari:.4f}", f"{truths['device']:.4f}", f"{truths['cpu']:.4f}", f"{peak[0]:.2f}")
            report.row(method.name, *cells)
            report.put({"seconds": took, "ari_cpu": ari, "ari_truth": truths, "peak_gib": peak[0]}, "methods", method.name)


def run(report: Report, options: argparse.Namespace) -> int:
    """Run all parts. Returns the exit code."""
    device = resolve(options.device, "--device")
    card = "no GPU" if device == "cpu" else torch.cuda.get_device_name(device)
    machine = {"card": card, "cores": usable_cores(), "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    report.put(machine, "machine")
    report.say(f"# {card}\n\n{', '.join(f'{name} {value}' for name, value in machine.items() if name != 'card')}, device {device}")
    work: dict[str, list[tuple[str, Callable[[], None]]]] = {
        "methods": [("methods", lambda: methods(report, options, device))],
        "encode": [("encode", lambda: encoding(report, options, device))],
        "neighbours": [("neighbours", lambda: neighbours(report, options, device))],
        "fit": [
            (f"fit of {n} rows", lambda n=n, clusters=clusters: fit(report, options, device, n, clusters))  # type: ignore[misc]
            for n, clusters in zip(options.rows, options.clusters, strict=True)
        ],
    }
    for part in options.parts:
        for name, do in work[part]:
            started = time.perf_counter()
            with report.guarded(name):
                do()
            report.say(f"\n({name}: {time.perf_counter() - started:.0f} s in all)")
    failed = report.figures["failed"]
    report.say(f"\n{'Failed: ' + ', '.join(failed) if failed else 'Nothing failed'}.")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--parts", nargs="+", default=["methods", "encode", "neighbours", "fit"], choices=["methods", "encode", "neighbours", "fit"])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_281_167], help="of the fits; the least is that of the methods")
    parser.add_argument("--clusters", type=int, nargs="+", default=[10, 1000], help="of each fit")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="of each method")
    parser.add_argument("--index-rows", type=int, default=200_000)
    parser.add_argument("--quick", action="store_true", help="small defaults, for a CPU")
    parser.set_defaults(fit_steps=None)
    if "--quick" in (sys.argv[1:] if arguments is None else arguments):
        parser.set_defaults(**QUICK, fit_steps=QUICK["steps"])
    options = parser.parse_args(arguments)
    if len(options.rows) != len(options.clusters):
        parser.error("--rows and --clusters: as many of one as of the other")
    return run(Report(options.json), options)


if __name__ == "__main__":
    sys.exit(main())
