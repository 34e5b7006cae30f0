"""train: the members of the outer ensemble, block by block.

Reads what `prepare` made, and the embeddings and counterparts behind it; writes `members`, one shard a block. A block depends on
its number and the settings alone, and not on how many members are wanted: a cut one starts again, and more members
only add blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from gsec_core import methods
from gsec_core.clustering.members import Member
from gsec_core.config import PipelineConfig
from gsec_core.devices import set_threads
from gsec_core.section import output_settings
from gsec_core.stages import prepare
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import usable
from gsec_core.stages.prepare import plan_of
from gsec_core.store.arrays import to_matrix
from gsec_core.tables import MEMBERS_TABLE, members_schema


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Train the named blocks."""
    set_threads(context.config.threads)
    plan = plan_of(context.config)
    features, neighbors = prepare.load_features(context), prepare.load_neighbors(context)
    shapes = plan.shapes(features.widths)
    wanted = [(block, name) for block, name in enumerate(blocks(context)) if name in names]
    trained = plan.trained(features, neighbors, [block for block, _ in wanted], progress)
    for (block, name), members in zip(wanted, trained, strict=True):
        columns: dict[str, Any] = {
            "member": block * plan.block_size + np.arange(len(members)),
            **{array: [member.parameters[array].ravel() for member in members] for array in shapes},
            "steps": [member.steps for member in members],
            "changed": [member.changed for member in members],
            "loss": [member.loss for member in members],
        }
        yield Finished(name, (pa.table(columns, schema=members_schema(shapes)),), {"members": len(members), "steps": sum(columns["steps"])})


def load_members(context: Context) -> tuple[list[Member], str]:
    """The members that are wanted, in order, and a digest of them."""
    members, digest = [], xxhash.xxh3_128()
    plan = plan_of(context.config)
    shapes = plan.shapes([len(half.scale) for half in prepare.load_halves(context)])
    for table in context.shards(STAGE, MEMBERS_TABLE).read_all(blocks(context)):
        arrays = {name: to_matrix(table, name) for name in shapes}
        for row, fact in enumerate(table.select(["steps", "changed", "loss"]).to_pylist()):
            members.append(Member({name: arrays[name][row].reshape(shape).copy() for name, shape in shapes.items()}, **fact))
    members = members[: plan.n_members]
    for member in members:
        digest.update(b"".join(array.tobytes() for array in member.parameters.values()))
    return members, digest.hexdigest()


def blocks(context: Context) -> list[str]:
    """Names of the blocks."""
    return [f"block-{block:04d}" for block in range(plan_of(context.config).n_blocks)]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    settings = output_settings(config.train)
    del settings["n_members"]
    return {"clusters": config.n_clusters, **prepare.named(config), **settings, **methods.find(config.method).parameters(config.of_method)}


def _steps(context: Context, names: Sequence[str]) -> int:
    return plan_of(context.config).steps(int(usable(context).rows.num_rows)) * len(names)


STAGE = Stage(
    name="train",
    version=2,
    settings=_settings,
    inputs=lambda context: [prepare.STAGE.fingerprint(context)],
    steps=(Step((MEMBERS_TABLE,), blocks, work, _steps, whole=True, unit="steps"),),
)
