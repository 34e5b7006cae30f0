"""Peak memory of encode with six large images of 12,000 x 12,000 pixels, with one decoding worker and with six.

Prints VmHWM of a process that encodes, in MiB, for each kind of file, and how far it is above the floor, which is that of small images.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from gsec_core import pipeline
from gsec_core.settings import load_config
from gsec_core.stages import encode
from gsec_core.stages.base import Context, run_stage

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG": ("jpg", {"quality": 85}),
    "progressive JPEG": ("jpg", {"quality": 85, "progressive": True}),
    "PNG": ("png", {"compress_level": 1}),
}
WORKERS = (1, 6)


def smooth(seed: int, side: int) -> Image.Image:
    """An image of colour waves, which compresses well."""
    y, x = np.mgrid[:600, :600] / 600
    waves = [np.sin(x * 7 + seed), np.cos(y * 9 + seed), np.sin((x + y) * 5 + seed)]
    return Image.fromarray((128 + 100 * np.stack(waves, -1)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def write(folder: Path, kind: str, side: int, count: int) -> Path:
    folder.mkdir()
    extension, options = KINDS[kind]
    for seed in range(count):
        smooth(seed, side).save(folder / f"{seed}.{extension}", **options)  # type: ignore[arg-type]
    return folder


def peak() -> float:
    """The peak memory of this process in MiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def peak_of(source: Path, workers: int) -> float:
    """Encode a source in a process of its own. Returns its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "benchmarks.large_images", "--encode", str(source), "--store", store, "--workers", str(workers)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def encode_all(source: str, store: str, workers: int) -> None:
    config = load_config(overrides={"source": source, "store": store, "clusters": 2, "encode": {"batch_size": 8, "workers": workers}})
    run, _ = pipeline.request(config)
    made = run_stage(Context.of(run, config), encode.STAGE)
    if made["rejected"] or made["missing"]:
        raise SystemExit(f"not all images were encoded: {made}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=12_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--encode")
    parser.add_argument("--store")
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    if args.encode:
        encode_all(args.encode, args.store, args.workers)
        print(peak())
        return
    with tempfile.TemporaryDirectory() as folder:
        small = write(Path(folder) / "small", "JPEG", 500, 6)
        floor = {workers: peak_of(small, workers) for workers in WORKERS}
        print("| files | workers | peak, MiB | above the floor |\n| --- | --- | --- | --- |")
        for workers in WORKERS:
            print(f"| small | {workers} | {floor[workers]:.0f} | |", flush=True)
        for number, kind in enumerate(args.kinds):
            large = write(Path(folder) / str(number), kind, args.side, 6)
            for workers in WORKERS:
                found = peak_of(large, workers)
                print(f"| {kind} | {workers} | {found:.0f} | {found - floor[workers]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
