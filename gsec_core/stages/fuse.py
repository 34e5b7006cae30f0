"""fuse: makes a text counterpart for every image from the descriptions of a few images.

Reads `representative_captions` and `embeddings`; writes `caption_embeddings` (one row for each description), `counterpart_model`
(how counterparts are made, and their weight) and `counterparts` (one row for each image).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core import methods
from gsec_core.clustering.kmeans import Rows
from gsec_core.config import PipelineConfig
from gsec_core.devices import native_threads
from gsec_core.section import output_settings
from gsec_core.stages import describe, encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once, silent
from gsec_core.stages.canonical import load_embeddings, load_joint, load_parts, parts, step_of_parts, usable
from gsec_core.store.arrays import make_table, to_matrix
from gsec_core.tables import (
    CAPTION_EMBEDDINGS_TABLE,
    COUNTERPART_MODEL,
    COUNTERPART_MODEL_TABLE,
    COUNTERPARTS_TABLE,
    caption_embeddings_schema,
    counterparts_schema,
)
from gsec_core.text.fusion import LEAST_WEIGHT, MOST_WEIGHT, Ridge, all_equal, best_predicted, ridge_cosines, softmax_cosines, softmax_counterparts, weight_by

RIDGE, SOFTMAX, JOINT, OWN = "ridge", "softmax", "joint", "own"


@dataclass(frozen=True)
class CounterpartModel:
    """The model by which a run makes counterparts."""

    kind: str
    text_weight: float
    held_out_cosine: float | None
    """Mean cosine between held-out descriptions and their predictions; None if this was not measured."""
    ridge: Ridge | None
    """The map for the kinds ridge and own; None for others."""


def embed(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Embed every description; stage describe guarantees at least one."""
    counted = describe.counted_captions(context)
    texts = counted["text"].combine_chunks().dictionary_encode()  # equal ones are encoded once
    vectors = encode.STAGE.load(context.config).encode_texts(texts.dictionary.to_pylist()).astype(np.float16)[texts.indices.to_numpy()]
    columns = [np.arange(len(vectors)), counted["prototype"], counted["band"], counted["text"], vectors]
    yield Finished("all", (make_table(columns, caption_embeddings_schema(vectors.shape[1])),), {"captions": len(vectors)})


def fit(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Fit the model of the counterparts and their weight: as set or, where the settings leave it open, by held-out descriptions."""
    kinds, weight = open_choices(context.config)
    config, X, described, T = context.config.fuse, load_embeddings(context), describe.described_rows(context), load_captions(context)
    with native_threads(context.config.threads):
        measures = {
            RIDGE: lambda: ridge_cosines(X, described, T),
            SOFTMAX: lambda: softmax_cosines(load_joint(context)[described], T, config.tau, config.max_lost_weight),
        }
        cosines = {kind: measures[kind]() for kind in kinds if kind in measures}
        kind = best_predicted(cosines) if cosines else kinds[0]
        if kind in (RIDGE, OWN) and all_equal(T):  # they tell nothing about an image
            kind, cosines, weight = JOINT, {}, LEAST_WEIGHT if config.text_weight is None else weight
        ridge = Ridge.fit(X, described, T) if kind in (RIDGE, OWN) else None
    model = {
        "kind": kind,
        "text_weight": weight_by(float(cosines[kind].mean())) if weight is None else weight,
        "held_out_cosine": float(cosines[kind].mean()) if cosines else None,
        "mean": ridge and ridge.mean,
        "weights": ridge and ridge.weights.ravel(),
    }
    yield Finished("all", (pa.Table.from_pylist([model], COUNTERPART_MODEL),))


def weight_deserved(context: Context) -> float:
    """The text weight by the quality of the counterparts, regardless of the settings; counterparts made from image embeddings alone get the least."""
    model = load_model(context)
    if model.kind == OWN:
        return MOST_WEIGHT
    if model.held_out_cosine is None or context.config.describe.captioner == "tagger":
        return LEAST_WEIGHT
    return weight_by(model.held_out_cosine)


def open_choices(config: PipelineConfig) -> tuple[tuple[str, ...], float | None]:
    """The kinds of counterpart that the settings allow, and the text weight; a weight of None is decided by held-out descriptions."""
    sees_more = config.describe.captioner != "tagger"  # the tagger's sentences come from a classifier on the embedding
    as_published = methods.find(config.method).as_published(config.of_method)
    kinds: tuple[str, ...] = (config.fuse.counterpart,)
    if kinds == ("auto",) and as_published:
        kinds = (SOFTMAX,)
    elif kinds == ("auto",) and not sees_more:
        kinds = (JOINT,)
    elif kinds == ("auto",):
        kinds = (RIDGE, SOFTMAX) if config.prototypes.representatives else (OWN,)
    if config.fuse.text_weight is not None:
        return kinds, config.fuse.text_weight
    if kinds == (JOINT,) or not sees_more:
        return kinds, LEAST_WEIGHT
    return kinds, MOST_WEIGHT if kinds == (OWN,) or as_published else None


@once
def load_model(context: Context) -> CounterpartModel:
    """The run's counterpart model."""
    [row] = context.read(STAGE, COUNTERPART_MODEL_TABLE).to_pylist()
    ridge = None
    if row["mean"] is not None:
        mean = np.array(row["mean"], np.float32)
        ridge = Ridge(mean, np.array(row["weights"], np.float32).reshape(len(mean), -1))
    return CounterpartModel(row["kind"], row["text_weight"], row["held_out_cosine"], ridge)


def combine(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Make the counterparts of the images of the named parts."""
    described, own = describe.described_rows(context), load_captions(context)
    for part in parts(context, names):
        rows = slice(part.start, part.stop)
        vectors = counterparts_of(context, context, rows, progress)
        if load_model(context).kind == OWN:
            here = np.flatnonzero((rows.start <= described) & (described < rows.stop))
            vectors[described[here] - rows.start] = own[here]
        yield Finished(part.name, (make_table([part.rows["image_id"], vectors], counterparts_schema(vectors.shape[1])),))


def counterparts_of(context: Context, images: Context, rows: Rows, progress: Progress = silent) -> NDArray[np.float16]:
    """The counterparts of the given images of the run ``images`` by this run's model, as they would be stored: (rows, dt), for rows > 0.

    Descriptions of these images themselves are not used.
    """
    return counterparts_from(context, load_embeddings(images)[rows], load_joint(images)[rows], progress)


def counterparts_from(context: Context, X: NDArray[np.float16], joint: NDArray[np.float16], progress: Progress = silent) -> NDArray[np.float16]:
    """As `counterparts_of`, for given embeddings: ``X`` (rows, d), and ``joint`` (rows, dt) in the space shared with text."""
    model, config = load_model(context), context.config.fuse
    if model.kind == JOINT:
        progress(len(joint))
        return joint
    blocks = []
    with native_threads(context.config.threads):
        if model.kind == SOFTMAX:
            captions = load_captions(context)
            found = softmax_counterparts(joint, captions, captions, config.tau, config.max_lost_weight)
        else:
            assert model.ridge is not None, "it is in the table"
            found = model.ridge.counterparts(X)
        for block in found:
            blocks.append(block.astype(np.float16))
            progress(len(block))
    return np.concatenate(blocks)


@once
def load_captions(context: Context) -> NDArray[np.float16]:
    """The embeddings of the run's descriptions, (M, dt), in memory."""
    return to_matrix(context.read(STAGE, CAPTION_EMBEDDINGS_TABLE, ["embedding"]), "embedding")


def load_counterparts(context: Context) -> NDArray[np.float16]:
    """The counterparts of all images in canonical order, (n, dt); a memory map as in `canonical.load_embeddings`."""
    return load_parts(context, context.shards(STAGE, COUNTERPARTS_TABLE), "counterpart")


def _settings(config: PipelineConfig) -> dict[str, Any]:
    kinds, weight = open_choices(config)
    return {**output_settings(config.fuse), "counterpart": kinds, "text_weight": weight}


STAGE = Stage(
    name="fuse",
    version=3,
    settings=_settings,
    inputs=lambda context: [encode.STAGE.fingerprint(context), describe.STAGE.fingerprint(context), usable(context).digest],
    steps=(
        Step((CAPTION_EMBEDDINGS_TABLE,), embed, whole=True),
        Step((COUNTERPART_MODEL_TABLE,), fit, whole=True),
        step_of_parts(COUNTERPARTS_TABLE, combine, whole=True),
    ),
    on_device=True,
)
