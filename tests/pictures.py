"""Small images to cluster, and the pipeline run on them in this process."""

from pathlib import Path

import numpy as np
from PIL import Image

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.results import finishing
from gsec_core.settings import load_config
from gsec_core.stages import encode, refit
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.ingest import Changes

TRAIN = {"n_members": 10, "refit": "always"}
"""Each run fits a new model; tests of what changes from one night to the next set ``refit`` otherwise."""

SMALL = {"ensemble_size": 4, "max_steps": 20}

SETTINGS = {
    "clusters": 2,
    "threads": 1,
    "encode": {"batch_size": 8},
    "ingest": {"shard_rows": 8},
    "baseline": {"n_init": 2},
    "prototypes": {"representatives": 1},
    "train": TRAIN,
    "gsec": SMALL,
}


def picture(seed: int, noise: int = 0) -> Image.Image:
    """A disc on a plain ground; ``seed`` draws both colours, place and size. ``noise``, if not 0, is the seed of faint noise on all pixels."""
    random = np.random.default_rng(seed)
    pixels = np.empty((48, 64, 3), np.uint8)
    pixels[:] = random.integers(0, 255, 3)
    y, x = np.mgrid[:48, :64]
    pixels[(x - random.integers(16, 48)) ** 2 + (y - random.integers(12, 36)) ** 2 < random.integers(30, 300)] = random.integers(0, 255, 3)
    if noise:
        grain = np.random.default_rng(noise).integers(-9, 10, pixels.shape)
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def write_pictures(folder: Path, seeds: range | list[int]) -> Path:
    """Write ``folder/SEED.jpg`` for every seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture(seed).save(folder / f"{seed:03d}.jpg", quality=90)
    return folder


def settings(source: Path | str, store: Path | str, **more: object) -> PipelineConfig:
    """Settings that make many small shards; ``more`` overrides them, with sections as dictionaries."""
    values: dict[str, object] = {"source": str(source), "store": str(store), **SETTINGS}
    for name, value in more.items():
        before = values.get(name)
        values[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return load_config(overrides=values)


def cluster(config: PipelineConfig, redo: tuple[str, ...] = (), counting: str | None = None) -> tuple[Context, Changes, dict[str, dict[str, float]]]:
    """Do a whole run without an orchestrator. Returns its context, the changes that ingest found, and each stage's figures."""
    run, changes = pipeline.request(config, redo, counting=counting)
    context = Context.of(run, config)
    made: dict[str, dict[str, float]] = {}
    while left := [name for name in run.stage_names() if name not in made]:
        made[left[0]] = run_stage(context, pipeline.stage(left[0]))
        if left[0] == refit.STAGE.name:
            context = Context.of(run, config)  # refit may have chosen more clusters than were asked for
    return context, changes, made


def encoded(config: PipelineConfig) -> tuple[Context, Changes, dict[str, float]]:
    """List and encode the images of a run, which `cluster` then finishes. Returns its context, the changes that ingest found, and the figures of encode."""
    run, changes = pipeline.request(config)
    context = Context.of(run, config)
    return context, changes, run_stage(context, encode.STAGE)


def assign_images(model: Context, images: PipelineConfig) -> Context:
    """Assign the images of these settings to the clusters of a run. Returns the context of the run that does so."""
    config = pipeline.assignment_config(model.run, images)
    run, _ = pipeline.request(config, of_run=model.run.id)
    context = Context.of(run, config)
    for name in run.stage_names():
        run_stage(context, pipeline.stage(name))
    return context


def labels(context: Context) -> dict[str, int]:
    """URI -> cluster, read from the run's tables."""
    import pyarrow.dataset as ds

    table = ds.dataset(context.run.files.location(finishing.assignments(context).directory)).to_table()
    uris = table["uri"].to_pylist()
    assert len(uris) == len(set(uris)), "an image has two rows"
    return dict(zip(uris, table["cluster"].to_pylist(), strict=True))
