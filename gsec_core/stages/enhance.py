"""enhance: trains the encoder on the clusters of the run, where the method can and the settings ask for it.

Reads `members`, `alignment`, `assignments` and the images themselves; writes `enhancer` (one shard for each checkpoint of the training), then `enhanced`
(labels of every image by the trained encoder and member) and `enhanced_clusters`. The run's clusters do not change: `write_encoder` exports an
encoder from the last checkpoint, which another run can use.

Training starts from the member that agrees with the consensus on most images: without labels there is no better criterion.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from gsec_core import methods
from gsec_core.checkpoints import to_state, to_table
from gsec_core.config import PipelineConfig
from gsec_core.devices import resolve, set_threads, thread_count
from gsec_core.encoders import Encoder, Trainable, load_encoder, skeleton
from gsec_core.errors import GsecError, Refused
from gsec_core.images import decode as images
from gsec_core.methods.enhancer import Enhancer
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage
from gsec_core.stages import align, train
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import assignment_table, part_names, parts, read_parts, step_of_parts, usable
from gsec_core.stages.encode import fetch_unchanged
from gsec_core.tables import (
    ALIGNMENT_TABLE,
    ASSIGNMENTS_TABLE,
    ENHANCED_CLUSTERS,
    ENHANCED_CLUSTERS_TABLE,
    ENHANCED_TABLE,
    ENHANCER_TABLE,
)

CHECKPOINTS = 20
"""Number of checkpoints of a training: a killed process loses only the part since the last one."""

DEAD = 0.1
"""A cluster that keeps less than this share of its images counts as dead."""


def stages(config: PipelineConfig) -> tuple[Stage, ...]:
    """The stage enhance if the settings ask for it, else none."""
    return (STAGE,) if methods.find(config.method).enhances(config.of_method) else ()


def check(config: PipelineConfig) -> None:
    """Raises Refused if the encoder cannot be trained, or if training would run on a CPU, for days, without ``train.device = cpu``. Loads no weights."""
    if not stages(config):
        return
    method, encoder = methods.find(config.method), config.encode.encoder
    setting = f"{method.name}.{method.enhanced_by} = true"
    model = skeleton(encoder)
    if model is None or not method.load_enhancer().fits(model):
        raise Refused(
            f"{setting}: encode.encoder = {json.dumps(encoder)} has no attention blocks that can be trained. Use a CLIP with a vision transformer, "
            "such as `open_clip:ViT-B-32:laion2b_s34b_b79k`, or leave the setting out."
        )
    elsewhere = config.engine == "ray" and config.ray.gpus > 0
    if config.train.device != "cpu" and not elsewhere and resolve(config.train.device, "train.device") == "cpu":
        raise Refused(f"{setting}: there is no GPU here, and a CPU takes days for ten thousand images. To use it anyway, set train.device = cpu.")


class Pictures:
    """The usable images in canonical order, read again as `encode` reads them; see `enhancer.Images`."""

    def __init__(self, context: Context, side: int) -> None:
        rows = pl.DataFrame(usable(context).rows.select(["image_id", "content_hash"]))
        listed = rows.join(pl.DataFrame(context.live.select(["image_id", *ImageRef._fields])), on="image_id", how="left", maintain_order="left")
        self._refs = [ImageRef._make(row) for row in listed.select(ImageRef._fields).iter_rows()]
        self._hashes: list[bytes] = listed["content_hash"].to_list()
        self._source, self._side, self._most = context.open_source(), side, context.config.ingest.max_shrink
        self.lost: set[int] = set()
        """Numbers of the images that are gone or have changed."""

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, number: int, /) -> Image.Image | None:
        try:
            return images.decode(fetch_unchanged(self._source, self._refs[number], self._hashes[number]), 2 * self._side)
        except (MissingImage, RejectedImage):
            self.lost.add(number)
            return None

    def check(self) -> None:
        """Raises Unreachable if the source does not answer, GsecError if too many images are lost for the rest to be trained on."""
        if self.lost:
            self._source.check()
        if len(self.lost) > self._most * len(self):
            raise GsecError(
                f"enhance: {len(self.lost)} of {len(self)} images are gone or have changed since they were encoded, more than "
                f"ingest.max_shrink = {self._most}. Run gsec on the source again, so that it notices them."
            )


def learn(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Train up to each of the named checkpoints, each from the one before it."""
    encoder, enhancer, pictures = _start(context)
    there = context.shards(STAGE, ENHANCER_TABLE).names()
    losses: list[float] = []
    for name, steps in _checkpoints(context).items():
        if name not in names:
            continue
        before = [done for done, at in _checkpoints(context).items() if done in there and enhancer.step < at < steps]
        if before:
            _restore(context, enhancer, before[-1])
        for loss in enhancer.train(pictures, encoder.preprocess, encoder.side, steps, thread_count(context.config.encode.workers)):
            losses.append(loss)
            progress(1)
        pictures.check()
        facts = {"steps": len(losses), "losses": {"mean": float(np.nanmean(losses))}}
        losses = []
        yield Finished(name, (to_table(enhancer.state()),), facts)


def label(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Label the images of the named parts with the trained encoder and member. A lost image keeps its label of the consensus."""
    encoder, enhancer, pictures = _start(context)
    _restore(context, enhancer, list(_checkpoints(context))[-1])
    _, permutation = _member(context)
    size = context.config.encode.batch_size

    def seen(number: int) -> NDArray[Any] | None:
        image = pictures[number]
        return None if image is None else encoder.preprocess(image)

    with ThreadPoolExecutor(thread_count(context.config.encode.workers), thread_name_prefix="decode") as pool:
        for part in parts(context, names):
            before = context.shards(align.STAGE, ASSIGNMENTS_TABLE).read(part.name)
            labels, confidence, margin = (before[name].to_numpy().copy() for name in ("cluster", "confidence", "margin"))
            for start in range(part.start, part.stop, size):
                numbers = range(start, min(start + size, part.stop))
                pixels = {number: view for number, view in zip(numbers, pool.map(seen, numbers), strict=True) if view is not None}
                if pixels:
                    rows = np.array(list(pixels)) - part.start
                    padding = [np.zeros_like(next(iter(pixels.values())))] * (size - len(pixels))
                    posteriors = enhancer.posteriors(np.stack([*pixels.values(), *padding]))[: len(pixels)]
                    second, first = np.sort(posteriors, axis=1)[:, -2:].T
                    labels[rows], confidence[rows], margin[rows] = permutation[posteriors.argmax(1)], first, first - second
                progress(len(numbers))
            pictures.check()
            lost = sum(part.start <= number < part.stop for number in pictures.lost)
            yield Finished(part.name, (assignment_table(part, labels, confidence, margin),), {"lost": lost})


def compare(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Count the images of each cluster before and after the training, and those that are in it both times."""
    before, after = (
        read_parts(context, stage, name, ["cluster"])["cluster"].to_numpy() for stage, name in ((align.STAGE, ASSIGNMENTS_TABLE), (STAGE, ENHANCED_TABLE))
    )
    clusters = context.config.n_clusters
    counts = [np.bincount(of, minlength=clusters) for of in (before, after, after[after == before])]
    yield Finished("all", (pa.table([np.arange(clusters), *counts], schema=ENHANCED_CLUSTERS),))


def remarks(context: Context) -> list[str]:
    """Sentences about the outcome and what to do next; none for a run without this stage."""
    if not context.has(STAGE):
        return []
    table, dead = context.read(STAGE, ENHANCED_CLUSTERS_TABLE), _dead(context)
    lost = sum(context.shards(STAGE, ENHANCED_TABLE).facts(part)["lost"] for part in part_names(context))
    share = pc.sum(table["both"]).as_py() / pc.sum(table["before"]).as_py()
    learnt = f"The encoder has learnt from the clusters, and its labels now agree with them on {share:.1%} of the images"
    if dead:
        said = [
            f"{learnt}, but {len(dead)} of the {table.num_rows} clusters keep less than a tenth of their images: {', '.join(map(str, dead[:20]))}"
            f"{', ...' if len(dead) > 20 else ''}. The run's clusters are unchanged, and the encoder cannot be exported."
        ]
    else:
        export = f"gsec export --encoder --run {context.run.id} --to FOLDER"
        said = [f"{learnt}. To cluster with it: {export}, then gsec run with --encoder open_clip:local-dir:FOLDER/encoder"]
    if lost:
        said.append(f"{lost} images were gone or had changed when the encoder was trained on the clusters, and were left out.")
    return said


def check_trained(context: Context) -> None:
    """Raises Refused if the run has trained no encoder, or one that lost clusters."""
    run = context.run.id
    if not context.has(STAGE):
        can = " or ".join(f"--method {method.name} --set {method.name}.{method.enhanced_by}=true" for method in methods.loaded().values() if method.enhanced_by)
        raise Refused(f"--encoder: run {run} has trained no encoder. A run with {can} does.")
    if dead := _dead(context):
        raise Refused(
            f"--encoder: with the encoder that run {run} has trained, {len(dead)} clusters keep less than a tenth of their images. Use the original one."
        )


def write_encoder(context: Context, folder: Path) -> None:
    """Write the trained encoder into an existing empty folder. Raises as `check_trained`."""
    check_trained(context)
    encoder, enhancer = _adapted(context, "cpu")
    _restore(context, enhancer, list(_checkpoints(context))[-1])
    encoder.save(folder, enhancer.merged())


def _dead(context: Context) -> list[int]:
    """Clusters that are dead after the training; see `DEAD`."""
    table = context.read(STAGE, ENHANCED_CLUSTERS_TABLE)
    before, both = (table[name].to_numpy() for name in ("before", "both"))
    found: list[int] = np.flatnonzero((before > 0) & (both < DEAD * before)).tolist()
    return found


def _start(context: Context) -> "tuple[Encoder, Enhancer, Pictures]":
    """The encoder, its enhancer before the first step, and the images to train on. Raises what `check` raises."""
    check(context.config)
    set_threads(context.config.threads)
    encoder, enhancer = _adapted(context, context.config.train.device)
    return encoder, enhancer, Pictures(context, max(encoder.side, context.config.encode.thumbnail_size))


def _adapted(context: Context, device: str) -> "tuple[Any, Enhancer]":
    config = context.config
    # A separate copy of the encoder, since training changes it in place.
    encoder = load_encoder(config.encode.encoder, precision=config.encode.precision, device=device, threads=config.threads)
    assert isinstance(encoder, Trainable), "it has a skeleton"
    member, _ = _member(context)
    make = methods.find(config.method).load_enhancer()
    return encoder, make(encoder.model, member, random_state=config.train.random_state, device=resolve(device, "train.device"))


def _member(context: Context) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int32]]:
    """The arrays of the member that agrees best with the consensus, and its permutation: the consensus's number of each of the member's clusters."""
    table = context.read(align.STAGE, ALIGNMENT_TABLE)
    best = int(table["agreement"].to_numpy().argmax())
    members, _ = train.load_members(context)
    return dict(members[best].parameters), np.array(table["permutation"][best].as_py(), np.int32)


def _checkpoints(context: Context) -> dict[str, int]:
    """Names of the checkpoints, and the number of steps done at each."""
    steps = methods.find(context.config.method).load_enhancer().steps(len(usable(context)))
    return {f"step-{at:09d}": at for at in (steps * number // CHECKPOINTS for number in range(1, CHECKPOINTS + 1)) if at}


def _restore(context: Context, enhancer: Enhancer, name: str) -> None:
    enhancer.restore(to_state(context.shards(STAGE, ENHANCER_TABLE).read(name)))


def _steps(context: Context, names: Sequence[str]) -> int:
    steps = _checkpoints(context)
    return sum(stop - start for name, (start, stop) in zip(steps, pairwise([0, *steps.values()]), strict=True) if name in names)


STAGE = Stage(
    name="enhance",
    version=1,
    settings=lambda config: {},
    inputs=lambda context: [align.STAGE.fingerprint(context)],
    steps=(
        Step((ENHANCER_TABLE,), learn, lambda context: list(_checkpoints(context)), _steps, whole=True, unit="steps"),
        step_of_parts(ENHANCED_TABLE, label, busy=True),
        Step((ENHANCED_CLUSTERS_TABLE,), compare, whole=True),
    ),
    on_device=True,
)
