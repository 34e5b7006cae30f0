"""Makes two published runs of one pipeline, without reports: one that fits a model, and one that keeps it."""

from dataclasses import dataclass
from pathlib import Path

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.results import publishing
from gsec_core.stages import lineage, report
from gsec_core.stages.base import Context, run_stage

from ..pictures import picture, settings, write_pictures


@dataclass(frozen=True)
class Nights:
    """The runs of two nights of one pipeline."""

    config: PipelineConfig
    first: Context
    second: Context

    @property
    def source(self) -> Path:
        return Path(str(self.config.source))

    @property
    def store(self) -> Path:
        return Path(self.config.store)


def two_nights(folder: Path) -> Nights:
    """Do two nights: the first with 20 pictures and exact copies of two of them, the second with four more pictures."""
    images = write_pictures(folder / "in", range(20))
    for number in (3, 7):
        (images / f"copy of {number:03d}.jpg").write_bytes((images / f"{number:03d}.jpg").read_bytes())
    config = settings(images, folder / "store", pipeline="nightly", train={"refit": "auto"}, max_rejects=1)
    first = _night(config)
    picture(3, noise=1).save(images / "nearly 003.jpg", quality=90)
    write_pictures(images, range(20, 23))
    second = _night(config)
    assert second.keeps
    return Nights(config, first, second)


def _night(config: PipelineConfig) -> Context:
    run, _ = pipeline.request(config)
    context, done = Context.of(run, config), set[str]()
    while left := [name for name in run.stage_names() if name not in done and name != report.STAGE.name]:
        run_stage(context, pipeline.stage(left[0]))
        context = Context.of(run, config)
        done.add(left[0])
    found = publishing.publish(context, {"moved": lineage.moved(context), "missing": 0, "images": 22, "rejected": 0})
    assert found.published, found
    run.finish({"images": 22, "rejected": 0, "missing": 0, "clusters": config.clusters, "moved": None, "agreement": 0.9, "published": True})
    return context
