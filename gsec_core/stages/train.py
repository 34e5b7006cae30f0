"""train: the members of the outer ensemble, a block at a time.

Reads `embeddings`, `counterparts`, `features` and `neighbors`; writes `members`, one shard a block. A block depends on
its number and the settings alone, so that a cut one starts again and more members only add blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gsec_core.clustering.bilevel import Member
from gsec_core.clustering.features import Features
from gsec_core.clustering.gsec import GSEC, Plan
from gsec_core.config import PipelineConfig, output_settings
from gsec_core.devices import set_threads
from gsec_core.stages import fuse, prepare
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import load_embeddings
from gsec_core.tables import MEMBERS, MEMBERS_TABLE


def plan_of(config: PipelineConfig) -> Plan:
    """The steps of the estimator that the settings describe."""
    return GSEC(config.clusters, device=config.train.device, **output_settings(config.train)).plan()


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Train the named blocks, one after the other: each keeps all threads busy."""
    set_threads(context.config.threads)
    plan = plan_of(context.config)
    features, neighbors = load_features(context), prepare.load_neighbors(context)
    for block, name in enumerate(blocks(context)):
        if name in names:
            members = plan.train(features, neighbors, block, progress)
            first = block * plan.training.block_size
            columns: dict[str, Any] = {
                "member": np.arange(first, first + len(members)),
                "weights": [member.weights.ravel() for member in members],
                "bias": [member.bias for member in members],
                "steps": [member.steps for member in members],
                "changed": [member.changed for member in members],
                "loss": [member.loss for member in members],
            }
            yield Finished(name, (pa.table(columns, schema=MEMBERS),), {"members": len(members), "steps": sum(columns["steps"])})


def load_features(context: Context) -> Features:
    """Embeddings and counterparts of all images, as training sees them."""
    return plan_of(context.config).features(load_embeddings(context), fuse.load_counterparts(context), prepare.load_halves(context))


def load_members(context: Context) -> list[Member]:
    """Every member, in order."""
    tables = context.shards(STAGE, MEMBERS_TABLE).read_all(blocks(context))
    rows = pa.concat_tables(tables).to_pylist()
    return [
        Member(np.array(row["weights"], np.float32).reshape(len(row["bias"]), -1), np.array(row["bias"], np.float32), row["steps"], row["changed"], row["loss"])
        for row in rows
    ]


def blocks(context: Context) -> list[str]:
    """Names of the blocks."""
    return [f"block-{block:04d}" for block in range(plan_of(context.config).n_blocks)]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {"clusters": config.clusters, **output_settings(config.train)}


STAGE = Stage(
    name="train",
    version=1,
    settings=_settings,
    inputs=lambda context: [prepare.STAGE.fingerprint(context)],
    steps=(Step((MEMBERS_TABLE,), blocks, work, lambda context, names: plan_of(context.config).training.max_steps * len(names), unit="steps"),),
)
