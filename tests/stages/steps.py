"""Runs stages one by one, and makes descriptions without a captioner."""

from collections.abc import Sequence

import pyarrow as pa

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.stages import base, describe, prototypes
from gsec_core.stages.base import Context, Stage
from gsec_core.store import Shards, fingerprint
from gsec_core.tables import DESCRIBED, FRESH, REFIT, REFIT_TABLE, REPRESENTATIVE_CAPTIONS, REPRESENTATIVE_CAPTIONS_TABLE, REPRESENTATIVES_TABLE

STAGES = pipeline.stages_of(PipelineConfig())
"""The stages of a run with default settings."""

WORDS = ("a red disc", "a green disc", "a dark picture", "a bright picture", "a small blue spot")


def run_stages(config: PipelineConfig, *stages: Stage) -> Context:
    """Request a run with these settings and do these stages of it."""
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    for stage in stages:
        base.run_stage(context, stage)
    return context


def make_up(config: PipelineConfig) -> Context:
    """A finished run with these settings, made without any work: each stage has one table, named after it, without real content."""
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    for stage in run.request()["stages"]:
        made_from = {} if stage == "encode" else {"clusters": config.clusters, "generation": context.generation.number}
        run.begin_stage(stage, fingerprint(stage, 1, made_from, [], 0), {stage: ["all"]})
        decided = {"decision": FRESH, "why": "made up", "images": 0, "fitted_images": 0, "left_out": []}
        table_of(context, stage).commit("all", pa.Table.from_pylist([decided], REFIT) if stage == REFIT_TABLE else pa.table({"nothing": [0]}))
    return context


def table_of(context: Context, stage: str) -> Shards:
    """The table of a stage of a run that `make_up` made."""
    return context.shards(pipeline.stage(stage), stage)


def describe_with(context: Context, texts: Sequence[str | None] = WORDS, statuses: Sequence[str] = (DESCRIBED,)) -> None:
    """Finish stage describe after stage prototypes: the texts and statuses are given to the representatives in turn, over and over."""
    rows = context.read(prototypes.STAGE, REPRESENTATIVES_TABLE)
    given = {
        **{name: rows[name] for name in ("prototype", "band", "image_id", "content_hash")},
        "text": [texts[number % len(texts)] for number in range(rows.num_rows)],
        "attributes": [[]] * rows.num_rows,
        "status": [statuses[number % len(statuses)] for number in range(rows.num_rows)],
        "model": ["test"] * rows.num_rows,
    }
    base.begin(context, describe.STAGE)
    nothing = [None] * rows.num_rows
    table = pa.table([given.get(field.name, nothing) for field in REPRESENTATIVE_CAPTIONS], schema=REPRESENTATIVE_CAPTIONS)
    context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).commit("all", table)
