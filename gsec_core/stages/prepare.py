"""prepare: computes what training needs from all images at once: the scaling of each half of the features, and each image's neighbours.

Reads `embeddings` and, where there is text, `counterparts`; writes `features` (one row for each half), `neighbor_index` (one shard for each half, only where
the index is approximate and therefore slow to build) and `neighbors` (one row for each image).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core import methods
from gsec_core.checkpoints import to_state, to_table
from gsec_core.clustering.kmeans import Rows
from gsec_core.clustering.neighbors import EXACT_ROWS, Built, Neighbors
from gsec_core.config import PipelineConfig
from gsec_core.devices import set_threads
from gsec_core.errors import Refused
from gsec_core.section import output_settings
from gsec_core.stages import encode, text
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.stages.canonical import Part, load_embeddings, load_pixels, part_names, parts, read_parts, rows_of_parts, usable
from gsec_core.stages.scratch import scratch_array
from gsec_core.store.arrays import make_table, to_matrix
from gsec_core.tables import CONTINUED, FEATURES, FEATURES_TABLE, NEIGHBOR_INDEX_TABLE, NEIGHBORS_TABLE, neighbors_schema

if TYPE_CHECKING:
    from gsec_core.clustering.features import Features, Half
    from gsec_core.methods.plan import OuterLayer

HALVES = ("image", "text")
"""Names of the halves of the features; the second exists only where there is text."""

_CHUNK_BYTES = 2**26


def plan_of(config: PipelineConfig) -> "OuterLayer":
    """The plan of the estimator that the settings describe. Raises Refused naming the invalid setting."""
    method = methods.find(config.method)
    try:
        plan = method.load()(config.n_clusters, device=config.train.device, **of_members(config), **method.parameters(config.of_method)).plan()
    except ValueError as error:
        parameter = str(error).partition(" ")[0]
        if parameter == "n_clusters":
            raise Refused(str(error).removeprefix("n_")) from None  # the setting's name
        section = "train." if parameter in type(config.train).model_fields else f"{method.name}." if parameter in method.Settings.model_fields else ""
        raise Refused(f"{section}{error}") from None
    if plan.pixel_side > config.encode.thumbnail_size:
        kept = f"encode.thumbnail_size = {config.encode.thumbnail_size}"
        raise Refused(
            f"{kept}: method {method.name} is to learn from images of {plan.pixel_side} pixels a side, and thumbnails are smaller. Raise it, or "
            "choose smaller images in the settings of the method."
        )
    return plan


def of_members(config: PipelineConfig) -> dict[str, Any]:
    """The settings of the members that all methods share: section train without the settings for when to refit."""
    return {name: value for name, value in output_settings(config.train).items() if name not in ("refit", "grow")}


def fit(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Fit the scaling of each half. Members that are trained further keep the scaling of their model."""
    set_threads(context.config.threads)
    if trains_further(context):
        yield Finished("all", (context.model.read(STAGE, FEATURES_TABLE),))
        return
    matrices = text.halves(context, load_embeddings(context))
    halves = plan_of(context.config).halves(matrices)
    called = list(HALVES[: len(matrices)]) * (len(halves) // len(matrices))
    bases = [None if half.basis is None else half.basis.ravel() for half in halves]
    columns: list[Any] = [called, [half.mean for half in halves], bases, [half.scale for half in halves]]
    yield Finished("all", (pa.table(columns, schema=FEATURES),))


def index(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Build the neighbour index of each named half, once for all machines that search in it."""
    set_threads(context.config.threads)
    for name in names:
        data, recall = plan_of(context.config).neighbor_index(load_features(context), HALVES.index(name)).built
        chunks = {f"{start:016d}": data[start : start + _CHUNK_BYTES] for start in range(0, len(data), _CHUNK_BYTES)}
        yield Finished(name, (to_table(chunks),), {"recall": {name: recall}})


def search(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Search the neighbours of the images in the named parts among all images."""
    set_threads(context.config.threads)
    wanted = parts(context, names)
    halves = range(len(load_features(context).halves))
    found, recalls = zip(*(_neighbors(context, half, wanted, progress) for half in halves), strict=True)
    facts = {"recall": dict(zip(HALVES, recalls, strict=False))} if None not in recalls else {}
    schema = neighbors_schema(found[0][0].shape[1], len(halves))
    for part, *near in zip(wanted, *found, strict=True):
        yield Finished(part.name, (make_table([part.rows["image_id"], *near], schema),), facts)


def _neighbors(context: Context, half: int, wanted: Sequence[Part], progress: Progress) -> tuple[list[NDArray[np.int32]], float | None]:
    """The neighbours in one half for each part, (rows, neighbours), and the recall of the index. Frees the index on return, so that only one is in memory."""
    plan, features = plan_of(context.config), load_features(context)
    index = plan.neighbor_index(features, half, _built(context, half))
    found = []
    for part in wanted:
        found.append(index.search(part.start, part.stop, plan.neighbor_count(len(features))))
        progress(part.stop - part.start)
    return found, index.recall


def _built(context: Context, half: int) -> Built | None:
    """The stored index of the half; None if none is stored."""
    if HALVES[half] not in _indexed(context):
        return None
    shards = context.shards(STAGE, NEIGHBOR_INDEX_TABLE)
    chunks = to_state(shards.read(HALVES[half]))
    return Built(np.concatenate([chunks[name] for name in sorted(chunks)]), shards.facts(HALVES[half])["recall"][HALVES[half]])


def _indexed(context: Context) -> list[str]:
    """The halves whose index is stored. None where the index is exact, since it only copies the rows, and none for runs that an older gsec began."""
    record = context.run.stage(STAGE.name)
    if len(usable(context)) < EXACT_ROWS or (record is not None and NEIGHBOR_INDEX_TABLE not in record["tables"]):
        return []
    return list(HALVES[: 2 if text.has_counterparts(context) else 1])


@once
def load_features(context: Context) -> "Features":
    """The features of all images for training, in canonical order; memory maps as in `canonical.load_embeddings`."""
    set_threads(context.config.threads)
    halves = text.halves(context, load_embeddings(context))
    features = features_of(context, halves, partial(scratch_array, context.config))
    features.nouns = text.nouns_of(context)
    features.pixels = pixels_of(context, context)
    return features


def features_of(context: Context, halves: Sequence[NDArray[Any]], allocate: Any = np.empty) -> "Features":
    """Features, in the run's scaling, of the given halves: embeddings (n, d) and, where there is text, counterparts (n, dt)."""
    return plan_of(context.config).features(halves, load_halves(context), text.weight(context), allocate)


def pixels_of(context: Context, images: Context, rows: Rows = slice(None)) -> NDArray[np.uint8] | None:
    """The pixels of the run ``images`` for the members of this run, (rows, side, side, 3); None if these members use features only."""
    side = plan_of(context.config).pixel_side
    return load_pixels(images, side)[rows] if side else None


@once
def load_halves(context: Context) -> "list[Half]":
    """The scaling of each half; where several methods are mixed, the halves of one method after those of the other."""
    from gsec_core.clustering.features import Half

    found = []
    for row in context.read(STAGE, FEATURES_TABLE).to_pylist():
        mean, scale = (np.array(row[name], np.float32) for name in ("mean", "scale"))
        basis = None if row["basis"] is None else np.array(row["basis"], np.float32).reshape(len(mean), len(scale))
        found.append(Half(mean, basis, scale))
    return found


@once
def load_neighbors(context: Context) -> Neighbors:
    """The neighbours of all images in canonical order."""
    table = read_parts(context, STAGE, NEIGHBORS_TABLE)
    return Neighbors(*(to_matrix(table, name) for name in table.column_names[1:]))


def trains_further(context: Context) -> bool:
    """Whether the run trains the members of the published model further instead of fitting new ones."""
    return context.decision.get("decision") == CONTINUED and plan_of(context.config).goes_on


def _inputs(context: Context) -> list[str]:
    continued = [context.run.fingerprint("refit")] if context.continues else []
    clusters = [f"clusters {context.config.n_clusters}"] if plan_of(context.config).prepared_by_clusters(len(usable(context))) else []
    return [encode.STAGE.fingerprint(context), *text.fingerprints(context), usable(context).digest, *continued, *clusters]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {**named(config), **methods.find(config.method).preparation(config.of_method)}


def named(config: PipelineConfig) -> dict[str, str]:
    """The method as a part of fingerprints. The default method is left out, so that fingerprints from before there were other methods stay valid."""
    name = methods.find(config.method).name
    return {} if name == methods.DEFAULT else {"method": name}


def _units(context: Context, names: Sequence[str]) -> int:
    halves = context.read(STAGE, FEATURES_TABLE, ["half"])["half"].unique()
    return len(halves) * rows_of_parts(context, names)


STAGE = Stage(
    name="prepare",
    version=2,
    settings=_settings,
    inputs=_inputs,
    steps=(
        Step((FEATURES_TABLE,), fit, whole=True),
        Step((NEIGHBOR_INDEX_TABLE,), index, _indexed, whole=True),
        Step((NEIGHBORS_TABLE,), search, part_names, _units, busy=True, unit="neighbourhoods"),
    ),
)
