"""map: places every image on the map.

Reads `layout` and the embeddings; writes `map` (one row for each image). The images of `layout` are landmarks and keep their places.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import unit_rows
from gsec_core.devices import native_threads
from gsec_core.report import layout
from gsec_core.stages import before, publish
from gsec_core.stages.base import Context, Finished, Progress, Stage, once
from gsec_core.stages.canonical import load_embeddings, parts, step_of_parts, usable
from gsec_core.tables import ASSIGNMENTS_TABLE, LAYOUT_TABLE, MAP, MAP_TABLE


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Place the images of the named parts: where they are already, or else beside the most similar landmarks."""
    X, there = load_embeddings(context), _there(context)
    marks = _landmarks(context)
    landmarks, points = unit_rows(X[marks["row"].to_numpy()]), marks.select("x", "y").to_numpy()
    for part in parts(context, names):
        placed = there[part.start : part.stop].copy()
        missing = np.flatnonzero(np.isnan(placed[:, 0]))
        noise = layout.noise_of(part.rows["image_id"].take(missing).to_pylist())
        with native_threads(context.config.threads):
            placed[missing] = layout.beside(X[part.start + missing], landmarks, points, noise)
        progress(len(placed))
        yield Finished(part.name, (pa.table([part.rows["image_id"], placed[:, 0], placed[:, 1]], schema=MAP),), {"placed": len(missing)})


def _landmarks(context: Context) -> pl.DataFrame:
    """The images of `layout`: image_id, x, y, and the row of each in canonical order."""
    shown = pl.DataFrame(context.read(publish.STAGE, LAYOUT_TABLE, ["image_id", "x", "y"]))
    return shown.join(_ids(context), on="image_id", maintain_order="left")


def _ids(context: Context) -> pl.DataFrame:
    return pl.DataFrame(usable(context).rows.select(["image_id", "content_hash"])).with_row_index("row")


@once
def _there(context: Context) -> NDArray[np.float32]:
    """The known places, (n, 2): those of the landmarks and, if the map is kept, those of its images; NaN for the others."""
    marks = _landmarks(context)
    there = np.full((len(usable(context)), 2), np.nan, np.float32)
    if context.keeps and _same_map(context, marks):
        was = pl.DataFrame(before.previous(context).read_table(MAP_TABLE))
        assigned = pl.DataFrame(before.previous(context).read_table(ASSIGNMENTS_TABLE, ["image_id", "content_hash"]))
        stayed = was.join(assigned, on="image_id").join(_ids(context), on=["image_id", "content_hash"])
        there[stayed["row"].to_numpy()] = stayed.select("x", "y").to_numpy()
    there[marks["row"].to_numpy()] = marks.select("x", "y").to_numpy()
    return there


def _same_map(context: Context, marks: pl.DataFrame) -> bool:
    """Whether the published run has a map and any landmark is still in its place: if most landmarks are gone, all are laid out again."""
    if STAGE.name not in before.previous(context).stage_names():
        return False
    places = ["image_id", "x", "y"]
    return len(marks.join(pl.DataFrame(before.previous(context).read_table(LAYOUT_TABLE, places)), on=places)) > 0


STAGE = Stage(
    name="map",
    version=1,
    settings=lambda config: {},
    inputs=lambda context: [publish.STAGE.fingerprint(context)],
    steps=(step_of_parts(MAP_TABLE, work, busy=True),),
)
