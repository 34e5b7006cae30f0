"""Consensus of several soft labellings that number the clusters differently.

A Hungarian matching (Kuhn 1955) maps each member's clusters to the mean of the other members, in turn, until nothing
changes; as in Strehl and Ghosh 2002, no ground truth is used. Matching needs only the products of the members'
posteriors, summed over the data in one pass.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MOST_ROUNDS = 20
"""Limit of rounds, since matching against a mean that changes with it need not converge; in practice it does in two or three rounds."""


def co_assignment(posteriors: Iterable[Tensor]) -> NDArray[np.float64]:
    """Soft contingency tables of all pairs of different members, (members, clusters, members, clusters), summed over rows.

    ``posteriors``: blocks of (rows, members, clusters), on any device. The table of a block is computed in their number format, the sum in double
    precision. The tables of a member with itself are zeros.
    """
    blocks = iter(posteriors)
    first = next(blocks)
    members, clusters = first.shape[1:]
    total = torch.zeros(members, clusters, members, clusters, dtype=torch.double, device=first.device)
    for block in chain([first], blocks):
        for member in range(members - 1):
            later = block[:, member + 1 :]
            total[member, :, member + 1 :] += (block[:, member].T @ later.flatten(1)).view(clusters, -1, clusters)
    for member in range(1, members):
        total[member, :, :member] = total[:member, :, member].permute(2, 0, 1)
    tables: NDArray[np.float64] = total.cpu().numpy()
    return tables


def align(tables: NDArray[np.float64]) -> NDArray[np.int32]:
    """Permutations (members, clusters): the consensus cluster of each cluster of each member.

    ``tables``: soft contingency tables of all pairs, as `co_assignment` returns them. Clusters are numbered as in the member
    that shares most information with the others.
    """
    members, clusters = tables.shape[:2]
    reference = _most_central(tables)
    permutations = np.empty((members, clusters), np.int32)
    for member in range(members):
        permutations[member] = np.arange(clusters) if member == reference else _match(tables[reference, :, member])
    for _ in range(MOST_ROUNDS):
        before = permutations.copy()
        for member in range(members):
            others = [other for other in range(members) if other != member]
            if others:
                permutations[member] = _match(sum(tables[other, np.argsort(permutations[other]), member] for other in others))
        if np.array_equal(permutations, before):
            break
    return permutations


def aligned_mean(values: Tensor, permutations: NDArray[np.int32]) -> Tensor:
    """Mean over members after alignment, (rows, clusters), of posteriors (rows, members, clusters)."""
    columns = torch.from_numpy(np.argsort(permutations, axis=1)).to(values.device)
    mean = values[:, 0].index_select(1, columns[0])
    for member in range(1, len(permutations)):
        mean += values[:, member].index_select(1, columns[member])
    return mean.div_(len(permutations))


def member_labels(labels: NDArray[np.integer[Any]], permutations: NDArray[np.int32]) -> NDArray[np.int32]:
    """Aligned labels (rows, members) for ``labels`` (rows, members) in each member's own numbers."""
    return np.take_along_axis(permutations.T, labels, axis=0)


def _match(table: NDArray[np.float64]) -> NDArray[np.int32]:
    """The row matched to each column of a soft contingency table (consensus, member).

    Columns are scaled to sum to 1, so that a small cluster's match counts as much as a large one's.
    """
    shares = table / np.maximum(table.sum(0), np.finfo(np.float64).tiny)
    rows, columns = linear_sum_assignment(shares, maximize=True)
    match = np.empty(len(rows), np.int32)
    match[columns] = rows
    return match


def _most_central(tables: NDArray[np.float64]) -> int:
    """The member with the highest mean normalised mutual information with the others."""
    members = len(tables)
    shared = [np.mean([_nmi(tables[one, :, other]) for other in range(members) if other != one] or [0]) for one in range(members)]
    return int(np.argmax(shared))


def _nmi(table: NDArray[np.float64]) -> float:
    """Normalised mutual information (arithmetic mean) of a soft contingency table."""
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    inside = joint > 0
    information = float((joint[inside] * np.log(joint[inside] / np.outer(rows, columns)[inside])).sum())
    entropies = -sum(float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (rows, columns))
    return 2 * information / entropies if entropies else 1.0
