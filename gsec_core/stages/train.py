"""train: trains the members of the outer ensemble, block by block.

Reads the tables of `prepare`, the embeddings, counterparts and, where members use pixels, thumbnails; writes `members`, one shard per block.
A block depends on its number and the settings alone, not on the number of members: more members only add blocks.

An interrupted block starts again from the beginning or, if the method supports it, from the last of its `checkpoints`, one shard each. Where members
learn from labels that they gave to a sample themselves, `transitions` and `instance_groups` record how these labels arose.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from gsec_core import methods
from gsec_core.checkpoints import to_state, to_table
from gsec_core.clustering.members import Member
from gsec_core.config import PipelineConfig
from gsec_core.devices import native_threads, set_threads
from gsec_core.stages import prepare
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import usable
from gsec_core.stages.prepare import plan_of
from gsec_core.store.arrays import to_matrix
from gsec_core.tables import CHECKPOINTS_TABLE, INSTANCE_GROUPS, INSTANCE_GROUPS_TABLE, MEMBERS_TABLE, TRANSITIONS, TRANSITIONS_TABLE, members_schema

if TYPE_CHECKING:
    from gsec_core.methods.plan import State


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Train the named blocks."""
    set_threads(context.config.threads)
    plan = plan_of(context.config)
    features, neighbors = prepare.load_features(context), prepare.load_neighbors(context)
    halves = prepare.load_halves(context)
    wanted = [(block, name) for name, block in blocks(context).items() if name in names]
    states = {block: _state(context, block, kept[-1]) for block, _ in wanted if (kept := _kept(context)[block])}
    start = load_members(context.model)[0] if prepare.trains_further(context) else []
    with native_threads(context.config.threads):  # starts multiply by numpy, which `set_threads` does not limit
        trained = plan.trained(features, neighbors, [block for block, _ in wanted], progress, states, start)
        for (block, name), members in zip(wanted, trained, strict=True):
            shapes = plan.arrays(halves, block)
            columns: dict[str, Any] = {
                "member": list(plan.numbers(block))[: len(members)],
                **{array: [member.parameters[array].ravel() for member in members] for array in shapes},
                "steps": [member.steps for member in members],
                "changed": [member.changed for member in members],
                "loss": [member.loss for member in members],
            }
            yield Finished(name, (pa.table(columns, schema=members_schema(shapes)),), {"members": len(members), "steps": sum(columns["steps"])})


def advance(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Make the named checkpoints, each from the one before it; all blocks train up to their first checkpoint, then all up to their second, and so on."""
    from gsec_core.methods.plan import Leg

    set_threads(context.config.threads)
    plan, features, neighbors = plan_of(context.config), prepare.load_features(context), prepare.load_neighbors(context)
    parts = {block: list(zip([None, *steps], steps, strict=False)) for block, steps in _kept(context).items()}
    with native_threads(context.config.threads):
        for number in range(max(map(len, parts.values()))):
            now = {block: part[number] for block, part in parts.items() if number < len(part)}
            legs = [
                Leg(block, None if start is None else _state(context, block, start), stop)
                for block, (start, stop) in now.items()
                if _checkpoint(block, stop) in names
            ]
            for leg, state in zip(legs, plan.advanced(features, neighbors, legs, progress), strict=True):
                yield Finished(_checkpoint(leg.block, leg.step), (to_table(state),))


def tell_labels(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Write the labels that members of the named blocks gave to their training sample themselves."""
    set_threads(context.config.threads)
    plan, ids = plan_of(context.config), usable(context).rows["image_id"].combine_chunks()
    for name, block in blocks(context).items():
        step = plan.labelled_at(block)
        if name in names and step is not None:
            found = plan.pseudo_labels(block, _state(context, block, step))
            [member] = plan.numbers(block)
            before, after = found.transitions.nonzero()
            counts = found.transitions[before, after]
            transitions = [np.full(len(counts), member), before, after, counts]
            groups = [np.full(len(found.images), member), found.classes, ids.take(pa.array(found.images)), found.groups[found.classes]]
            yield Finished(name, (pa.table(transitions, schema=TRANSITIONS), pa.table(groups, schema=INSTANCE_GROUPS)))


def load_pseudo_labels(context: Context) -> tuple[pa.Table, pa.Table] | None:
    """`transitions` and `instance_groups` of all members that have them; None if there are none."""
    record = context.run.stage(STAGE.name)
    names = [] if record is None else record["tables"].get(INSTANCE_GROUPS_TABLE, [])  # an older gsec wrote none
    if not names:
        return None
    transitions, groups = (pa.concat_tables(context.shards(STAGE, table).read_all(names)) for table in (TRANSITIONS_TABLE, INSTANCE_GROUPS_TABLE))
    return transitions, groups


def load_members(context: Context) -> tuple[list[Member], str]:
    """The members of the ensemble, in order, and a digest of their parameters."""
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


def blocks(context: Context) -> dict[str, int]:
    """Names and numbers of the blocks."""
    return {f"block-{block:04d}": block for block in plan_of(context.config).blocks}


def _labelling_blocks(context: Context) -> list[str]:
    """Names of the blocks whose members learn from labels that they gave themselves."""
    plan = plan_of(context.config)
    return [name for name, block in blocks(context).items() if plan.labelled_at(block) is not None]


def _kept(context: Context) -> dict[int, Sequence[int]]:
    """For each block, the steps after which its state is stored."""
    plan, n = plan_of(context.config), len(usable(context))
    return {block: plan.checkpoints(n, block) for block in plan.blocks}


def _checkpoint(block: int, step: int) -> str:
    return f"block-{block:04d}-step-{step:07d}"


def _checkpoints(context: Context) -> dict[str, int]:
    """Names of the checkpoints, and the number of steps from the one before to each."""
    return {_checkpoint(block, stop): stop - start for block, steps in _kept(context).items() for start, stop in pairwise([0, *steps])}


def _state(context: Context, block: int, step: int) -> "State":
    return to_state(context.shards(STAGE, CHECKPOINTS_TABLE).read(_checkpoint(block, step)))


def _settings(config: PipelineConfig) -> dict[str, Any]:
    settings = prepare.of_members(config)
    del settings["n_members"]
    method = methods.find(config.method)
    revision = method.revision(config.of_method, config.n_clusters)
    revised = {} if revision == 1 else {"revision": revision}
    return {"clusters": config.n_clusters, **revised, **prepare.named(config), **settings, **method.parameters(config.of_method)}


def _steps(context: Context, names: Sequence[str]) -> int:
    """Number of training steps of the named blocks after their last checkpoints."""
    wanted = [block for name, block in blocks(context).items() if name in names]
    done = sum(kept[-1] for block in wanted if (kept := _kept(context)[block]))
    return plan_of(context.config).total_steps(len(usable(context)), wanted, prepare.trains_further(context)) - done


STAGE = Stage(
    name="train",
    version=2,
    settings=_settings,
    inputs=lambda context: [prepare.STAGE.fingerprint(context)],
    steps=(
        Step(
            (CHECKPOINTS_TABLE,),
            advance,
            lambda context: list(_checkpoints(context)),
            lambda context, names: sum(_checkpoints(context)[name] for name in names),
            whole=True,
            unit="steps",
        ),
        Step((TRANSITIONS_TABLE, INSTANCE_GROUPS_TABLE), tell_labels, _labelling_blocks, whole=True),
        Step((MEMBERS_TABLE,), work, lambda context: list(blocks(context)), _steps, busy=True, unit="steps"),
    ),
    on_device=True,
)
