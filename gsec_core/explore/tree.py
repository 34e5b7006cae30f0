"""The tree of a run's clusters, and cuts of it."""

from collections.abc import Sequence

from gsec_core.clustering.hierarchy import cut
from gsec_core.errors import NotFound, Refused
from gsec_core.explore.clusters import Made
from gsec_core.explore.rows import Group, Node, Tree
from gsec_core.store import Run
from gsec_core.tables import HIERARCHY_TABLE


def tree(run: Run, clusters: Sequence[Made], groups: int | None) -> Tree:
    """See `Collection.tree`."""
    if groups is not None and not 1 <= groups <= len(clusters):
        raise Refused(f"groups = {groups}: the run has {len(clusters)} clusters; give 1 to {len(clusters)}.")
    try:
        table = run.read_table(HIERARCHY_TABLE)
    except Refused:
        raise NotFound(f"run {run.id} has no tree of its clusters, because an older gsec made it. gsec run with --redo hierarchy makes one.") from None
    nodes = tuple(Node(**row) for row in table.to_pylist())
    if len(nodes) != len(clusters) - 1:
        raise NotFound(f"run {run.id} has no tree of its clusters: none is made of {len(clusters):,} clusters.")
    leaves = tuple((one.key, one.name, one.size) for one in clusters)
    return Tree(leaves, nodes, () if groups is None else _cut(clusters, nodes, groups))


def _cut(clusters: Sequence[Made], nodes: Sequence[Node], groups: int) -> tuple[Group, ...]:
    """The clusters in ``groups`` groups, the largest first."""
    merges = [(node.left, node.right) for node in nodes]
    names = [*(one.name for one in clusters), *(node.name for node in nodes)]
    found = []
    for number, inside in cut(merges, len(clusters), groups).items():
        members = sorted((clusters[one] for one in inside), key=lambda one: (-one.size, one.key))
        found.append(Group(names[number], sum(one.size for one in members), tuple(one.key for one in members)))
    return tuple(sorted(found, key=lambda group: (-group.size, group.keys)))
