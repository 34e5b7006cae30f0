"""A fake captioner, and runs up to and including stage describe."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gsec_core import pipeline
from gsec_core.captioners.base import Answer, Subject
from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused, Unreachable
from gsec_core.images.decode import content_hash
from gsec_core.stages import describe, encode, prototypes
from gsec_core.stages.base import Context, run_stage
from gsec_core.store.captions import Row
from gsec_core.tables import DESCRIBED, REPRESENTATIVE_CAPTIONS_TABLE

from ...pictures import settings
from ..steps import run_stages

IMAGES = 12
"""How many images the source has. By default all of them are representatives."""

BEFORE = (encode.STAGE, prototypes.STAGE)


class Fake:
    """A captioner that records what it was asked. ``first`` is called before every answer, with the number of the request."""

    model = "fake"
    form = "made up"

    def __init__(self, concurrency: int = 1, first: Callable[[int, Subject], None] = lambda number, subject: None) -> None:
        self.concurrency = concurrency
        self.first = first
        self.answer = lambda subject: Answer(f"This image contains {subject.uri}.", subject.uri, ("small",), DESCRIBED)
        self.asked: list[str] = []
        self._counting = threading.Lock()

    def check(self) -> None:
        raise Refused("describe.url: nobody is there.")

    async def describe(self, subject: Subject) -> Answer:
        return await asyncio.to_thread(self._describe, subject)

    def _describe(self, subject: Subject) -> Answer:
        with self._counting:
            self.asked.append(subject.uri)
            number = len(self.asked)
        self.first(number, subject)
        assert content_hash(subject.read()) == subject.content_hash
        return self.answer(subject)


Install = Callable[[Fake], Fake]


def config_of(place: Path, *, count: int | None = 4, representatives: int = IMAGES, clusters: int = 2, **describe: object) -> PipelineConfig:
    micro_clusters = {"count": count, "representatives": representatives}
    return settings(place / "in", place / "store", corpus="discs", clusters=clusters, prototypes=micro_clusters, describe=describe)


def run(config: PipelineConfig, redo: tuple[str, ...] = ()) -> tuple[Context, dict[str, float]]:
    """Run the stages up to and including describe. Returns the context and the figures of describe."""
    started, _ = pipeline.request(config, redo)
    context = Context.of(started, config)
    for stage in BEFORE:
        run_stage(context, stage)
    return context, run_stage(context, describe.STAGE)


def rows(context: Context) -> list[Row]:
    found: list[Row] = context.read(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).to_pylist()
    return found


def in_log(context: Context) -> int:
    return sum(table.num_rows for table in context.corpus.captions.read_all(context.corpus.captions.names()))


def named(uri: str) -> str:
    return f"This image contains {uri}."


def fail_at(number: int, error: BaseException | None = None) -> Callable[[int, Subject], None]:
    def first(asked: int, subject: Subject) -> None:
        if asked == number:
            raise error or Unreachable("describe.url: the server does not answer.")

    return first


def unfinished(config: PipelineConfig, error: type[BaseException]) -> Context:
    context = run_stages(config, *BEFORE)
    with pytest.raises(error):
        run_stage(context, describe.STAGE)
    assert context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).names() == set()
    return context
