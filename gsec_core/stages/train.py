"""train: the members of the outer ensemble, block by block.

Reads what `prepare` made, and the embeddings and counterparts behind it; writes `members`, one shard a block. A block depends on
its number and the settings alone, and not on how many members are wanted: a cut one starts again, and more members
only add blocks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
    halves = prepare.load_halves(context)
    wanted = [(block, name) for block, name in zip(plan.blocks, blocks(context), strict=True) if name in names]
    trained = plan.trained(features, neighbors, [block for block, _ in wanted], progress)
    for (block, name), members in zip(wanted, trained, strict=True):
        shapes = plan.arrays(halves, block)
        columns: dict[str, Any] = {
            "member": list(plan.numbers(block)),
            **{array: [member.parameters[array].ravel() for member in members] for array in shapes},
            "steps": [member.steps for member in members],
            "changed": [member.changed for member in members],
            "loss": [member.loss for member in members],
        }
        yield Finished(name, (pa.table(columns, schema=members_schema(shapes)),), {"members": len(members), "steps": sum(columns["steps"])})


def load_members(context: Context) -> tuple[list[Member], str]:
    """The members that are wanted, in order, and a digest of them."""
    digest = xxhash.xxh3_128()
    plan, halves = plan_of(context.config), prepare.load_halves(context)
    tables = zip(plan.blocks, context.shards(STAGE, MEMBERS_TABLE).read_all(blocks(context)), strict=True)
    members = plan.wanted([_members(table, plan.arrays(halves, block)) for block, table in tables])
    for member in members:
        digest.update(b"".join(array.tobytes() for array in member.parameters.values()))
    return members, digest.hexdigest()


def _members(table: pa.Table, shapes: Mapping[str, tuple[int, ...]]) -> list[Member]:
    arrays = {name: to_matrix(table, name) for name in shapes}
    facts = enumerate(table.select(["steps", "changed", "loss"]).to_pylist())
    return [Member({name: arrays[name][row].reshape(shape).copy() for name, shape in shapes.items()}, **fact) for row, fact in facts]


def blocks(context: Context) -> list[str]:
    """Names of the blocks."""
    return [f"block-{block:04d}" for block in plan_of(context.config).blocks]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    settings = output_settings(config.train)
    del settings["n_members"]
    return {"clusters": config.n_clusters, **prepare.named(config), **settings, **methods.find(config.method).parameters(config.of_method)}


def _steps(context: Context, names: Sequence[str]) -> int:
    plan = plan_of(context.config)
    wanted = [block for block, name in zip(plan.blocks, blocks(context), strict=True) if name in names]
    return plan.total_steps(int(usable(context).rows.num_rows), wanted)


STAGE = Stage(
    name="train",
    version=2,
    settings=_settings,
    inputs=lambda context: [prepare.STAGE.fingerprint(context)],
    steps=(Step((MEMBERS_TABLE,), blocks, work, _steps, whole=True, unit="steps"),),
)
