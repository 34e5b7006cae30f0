"""prepare: what training needs of all images at once, each half standardised and each image's neighbours.

Reads `embeddings` and `counterparts`; writes `features` (a row a half) and `neighbors` (a row an image).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.arrays import to_column, to_matrix
from gsec_core.clustering.bilevel import Neighbors
from gsec_core.clustering.features import Features, Half, fit_half
from gsec_core.clustering.gsec import half_index
from gsec_core.clustering.neighbors import N_NEIGHBORS, neighbor_count
from gsec_core.devices import set_threads
from gsec_core.stages import encode, fuse
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import Part, load_embeddings, parts, rows_of_parts, usable
from gsec_core.tables import FEATURES, FEATURES_TABLE, NEIGHBORS_TABLE, neighbors_schema

HALVES = ("image", "text")


def fit(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """What standardises each half."""
    halves = [fit_half(matrix) for matrix in _matrices(context)]
    columns = [list(HALVES), [half.mean for half in halves], [half.scale for half in halves]]
    yield Finished("all", (pa.table(columns, schema=FEATURES),), {})


def search(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """The neighbours of the images of the named parts among all images."""
    set_threads(context.config.threads)
    features = Features(*_matrices(context), load_halves(context), text_weight=0.5)
    wanted = parts(context, names)
    found, recalls = zip(*(_neighbors(context, features, number, wanted, progress) for number in range(len(HALVES))), strict=True)
    facts = {"recall": dict(zip(HALVES, recalls, strict=True))} if None not in recalls else {}
    schema = neighbors_schema(found[0][0].shape[1])
    for part, *halves in zip(wanted, *found, strict=True):
        columns = [to_column(half, schema.field(1).type) for half in halves]
        yield Finished(part.name, (pa.table([part.rows["image_id"], *columns], schema=schema),), facts)


def _neighbors(context: Context, features: Features, half: int, wanted: Sequence[Part], progress: Progress) -> tuple[list[NDArray[np.int32]], float | None]:
    """The neighbours by one half for each part, (rows, neighbours), and the index's recall. The index of one half is gone before that of the next is made."""
    index = half_index(features, half, n_threads=context.config.threads)
    found = []
    for part in wanted:
        found.append(index.search(part.start, part.stop, neighbor_count(len(features), N_NEIGHBORS)))
        progress(part.stop - part.start)
    return found, index.recall


def load_halves(context: Context) -> list[Half]:
    """What standardises the image half and the text half."""
    rows = context.shards(STAGE, FEATURES_TABLE).read("all").to_pylist()
    return [Half(np.array(row["mean"], np.float32), np.array(row["scale"], np.float32)) for row in rows]


def load_neighbors(context: Context) -> Neighbors:
    """The neighbours of all images in canonical order."""
    table = pa.concat_tables(context.shards(STAGE, NEIGHBORS_TABLE).read_all(usable(context).part_names))
    return Neighbors(*(to_matrix(table, f"{half}_neighbors") for half in HALVES))


def _matrices(context: Context) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    return load_embeddings(context), fuse.load_counterparts(context)


STAGE = Stage(
    name="prepare",
    version=1,
    settings=lambda config: {"neighbors": N_NEIGHBORS},
    inputs=lambda context: [encode.STAGE.fingerprint(context), fuse.STAGE.fingerprint(context), usable(context).digest],
    steps=(
        Step((FEATURES_TABLE,), lambda context: ["all"], fit, lambda context, names: 0, whole=True),
        Step((NEIGHBORS_TABLE,), lambda context: usable(context).part_names, search, lambda context, names: 2 * rows_of_parts(context, names), whole=True),
    ),
)
