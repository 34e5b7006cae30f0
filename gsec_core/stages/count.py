"""count: finds the number of clusters, where the settings say `clusters = "auto"`.

Reads `embeddings`; writes `cluster_counts` (one row for each number that was tried). The stage belongs to a separate run, which precedes the run
that uses the number.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from gsec_core.devices import native_threads, set_threads
from gsec_core.errors import Refused
from gsec_core.stages import encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import load_embeddings, usable
from gsec_core.tables import CLUSTER_COUNTS, CLUSTER_COUNTS_TABLE


def count(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Compute purity as a function of the number of clusters, and the number that it suggests."""
    from gsec_core.clustering.n_clusters import suggest_n_clusters

    set_threads(context.config.threads)
    with native_threads(context.config.threads):
        try:
            found = suggest_n_clusters(load_embeddings(context))
        except ValueError as error:
            raise Refused(f"clusters = auto: {error} Give a number with --clusters.") from None
    columns = [found.counts, found.purity, found.low, np.equal(found.counts, found.n_clusters or 0)]
    yield Finished("all", (pa.table(columns, schema=CLUSTER_COUNTS),), {"clusters": found.n_clusters or 0})


def load_counts(context: Context) -> pa.Table:
    """The table `cluster_counts`: purity for each number of clusters that was tried."""
    return context.read(STAGE, CLUSTER_COUNTS_TABLE)


def counted(context: Context) -> int:
    """The suggested number of clusters. Raises Refused, with the curve in short, if no number is suggested."""
    rows = load_counts(context).to_pylist()
    for row in rows:
        if row["suggested"]:
            return int(row["clusters"])
    from gsec_core.clustering.n_clusters import MOSTLY_PURE, PURE

    shown = ", ".join(f"{row['clusters']}: {row['purity']:.2f} / {row['low']:.2f}" for row in rows[:: max(1, len(rows) // 8)])
    pure = [row for row in rows if row["purity"] >= PURE and row["low"] >= MOSTLY_PURE]
    if pure and pure[-1] is rows[-1]:
        why = f"clusters are separated up to {rows[-1]['clusters']}, the most that {len(usable(context))} images allow, and there may be more"
    else:
        why = "no number stands out, because purity falls gradually with more clusters"
    raise Refused(f"clusters = auto: the images do not show how many clusters there are: {why} (purity, mean / low: {shown}). Give a number with --clusters.")


STAGE = Stage(
    name="count",
    version=1,
    settings=lambda config: {},
    inputs=lambda context: [encode.STAGE.fingerprint(context), usable(context).digest],
    steps=(Step((CLUSTER_COUNTS_TABLE,), count, whole=True),),
)
