"""train: the members of the outer ensemble, a block at a time.

Reads what `prepare` made, and the embeddings and counterparts behind it; writes `members`, one shard a block. A block depends on
its number and the settings alone, and not on how many members are wanted: a cut one starts again, and more members
only add blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from gsec_core.config import PipelineConfig, output_settings
from gsec_core.devices import set_threads
from gsec_core.methods.gsec.bilevel import Member
from gsec_core.stages import prepare
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.prepare import plan_of
from gsec_core.store.arrays import to_matrix
from gsec_core.tables import MEMBERS, MEMBERS_TABLE


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Train the named blocks, one after the other: each keeps all threads busy."""
    set_threads(context.config.threads)
    plan = plan_of(context.config)
    features, neighbors = prepare.load_features(context), prepare.load_neighbors(context)
    for block, name in enumerate(blocks(context)):
        if name in names:
            members = plan.train(features, neighbors, block, progress)
            columns: dict[str, Any] = {
                "member": block * plan.preset.training.block_size + np.arange(len(members)),
                "weights": [member.weights.ravel() for member in members],
                "bias": [member.bias for member in members],
                "steps": [member.steps for member in members],
                "changed": [member.changed for member in members],
                "loss": [member.loss for member in members],
            }
            yield Finished(name, (pa.table(columns, schema=MEMBERS),), {"members": len(members), "steps": sum(columns["steps"])})


def load_members(context: Context) -> tuple[list[Member], str]:
    """The members that are wanted, in order, and a digest of them."""
    members, digest = [], xxhash.xxh3_128()
    for table in context.shards(STAGE, MEMBERS_TABLE).read_all(blocks(context)):
        weights, bias = (to_matrix(table, name) for name in ("weights", "bias"))
        facts = table.select(["steps", "changed", "loss"]).to_pylist()
        members += [Member(w.reshape(len(b), -1), b, **fact) for w, b, fact in zip(weights, bias, facts, strict=True)]
    members = members[: plan_of(context.config).preset.n_members]
    for member in members:
        digest.update(member.weights.tobytes() + member.bias.tobytes())
    return members, digest.hexdigest()


def blocks(context: Context) -> list[str]:
    """Names of the blocks."""
    return [f"block-{block:04d}" for block in range(plan_of(context.config).n_blocks)]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    settings = output_settings(config.train)
    del settings["n_members"]
    return {"clusters": config.n_clusters, "preset": config.preset, **settings}


def _steps(context: Context, names: Sequence[str]) -> int:
    return plan_of(context.config).preset.training.max_steps * len(names)


STAGE = Stage(
    name="train",
    version=2,
    settings=_settings,
    inputs=lambda context: [prepare.STAGE.fingerprint(context)],
    steps=(Step((MEMBERS_TABLE,), blocks, work, _steps, whole=True, unit="steps"),),
)
