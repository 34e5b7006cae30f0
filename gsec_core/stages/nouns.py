"""nouns: a text counterpart for every image, from the words of a vocabulary that tell the images apart.

Reads `vocabulary` and `embeddings`; writes `semantic_centres` (a row a part of the images), `selected_nouns` (a row a word that is kept) and
`counterparts` (a row an image). Of the number of clusters nothing is used but the number of parts that may follow from it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn import config_context
from threadpoolctl import threadpool_limits

from gsec_core.config import PipelineConfig
from gsec_core.devices import thread_count
from gsec_core.errors import Refused
from gsec_core.section import output_settings
from gsec_core.stages import encode, vocabulary
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.stages.canonical import check_enough, load_joint, load_parts, parts, rows_of_parts, usable
from gsec_core.store.arrays import to_column, to_matrix
from gsec_core.tables import (
    COUNTERPARTS_TABLE,
    SELECTED_NOUNS_TABLE,
    SEMANTIC_CENTRES_TABLE,
    centres_schema,
    counterparts_schema,
    selected_nouns_schema,
)
from gsec_core.text.fusion import LEAST_WEIGHT, softmax_counterparts
from gsec_core.text.nouns import MAX_LOST_WEIGHT, best_nouns, centre_count, semantic_centres


def place(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """The semantic centres, from all usable images."""
    config, X = context.config, load_joint(context)
    with config_context(assume_finite=True), threadpool_limits(thread_count(config.threads)):
        centres = semantic_centres(X, _count(context), random_state=config.nouns.random_state, n_threads=config.threads)
    progress(len(X))
    schema = centres_schema(X.shape[1])
    yield Finished("all", (pa.table([np.arange(len(centres)), to_column(centres, schema.field("centre").type)], schema=schema),), {})


def select(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """The words that are kept."""
    words, vectors = vocabulary.load_words(context)
    centres = to_matrix(context.shards(STAGE, SEMANTIC_CENTRES_TABLE).read("all"), "centre")
    with threadpool_limits(thread_count(context.config.threads)):
        found = best_nouns(vectors, centres, context.config.nouns.per_centre)
    if len(found.noun) < context.config.n_clusters:
        raise Refused(
            f"text.vocabulary = {context.config.text.vocabulary}: only {len(found.noun)} of its {len(words):,} words tell the images apart, fewer than "
            f"clusters = {context.config.n_clusters}. Give more words, or fewer clusters."
        )
    schema = selected_nouns_schema(vectors.shape[1])
    embeddings = to_column(vectors[found.noun], schema.field("embedding").type)
    columns = [found.noun, [words[noun] for noun in found.noun], found.centre, found.rank, found.score, embeddings]
    yield Finished("all", (pa.table(columns, schema=schema),), {"nouns": len(found.noun)})


def combine(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """The counterparts of the images of the named parts."""
    joint = load_joint(context)
    for part in parts(context, names):
        found = _counterparts(context, joint[part.start : part.stop], progress)
        schema = counterparts_schema(found.shape[1])
        column = to_column(found, schema.field("counterpart").type)
        yield Finished(part.name, (pa.table([part.rows["image_id"], column], schema=schema),), {})


def counterparts_of(context: Context, X: NDArray[np.float16], joint: NDArray[np.float16]) -> NDArray[np.float16]:
    """The counterparts (rows, joint_dim) that the run gives to images in the space shared with text, its own or not; see `text.halves_of`."""
    return _counterparts(context, joint, lambda images: None)


def _counterparts(context: Context, joint: NDArray[np.float16], progress: Progress) -> NDArray[np.float16]:
    _, kept = load_nouns(context)
    found = []
    with threadpool_limits(thread_count(context.config.threads)):
        for block in softmax_counterparts(joint, kept, kept, context.config.nouns.tau, MAX_LOST_WEIGHT):
            found.append(block.astype(np.float16))
            progress(len(block))
    return np.concatenate(found)


@once
def load_nouns(context: Context) -> tuple[list[str], NDArray[np.float16]]:
    """The words that are kept, and their vectors (kept, joint_dim)."""
    table = context.shards(STAGE, SELECTED_NOUNS_TABLE).read("all", ["word", "embedding"])
    return table["word"].to_pylist(), to_matrix(table, "embedding")


def load_counterparts(context: Context) -> NDArray[np.float16]:
    """The counterparts of all images in canonical order, (n, joint_dim); a memory map as `canonical.load_embeddings` is."""
    return load_parts(context, context.shards(STAGE, COUNTERPARTS_TABLE), "counterpart")


def text_weight(context: Context) -> float:
    """Of the counterparts against the images."""
    return context.config.nouns.weight


def weight_deserved(context: Context) -> float:
    """What is made from an image's embedding alone earns the least."""
    return LEAST_WEIGHT


def _count(context: Context) -> int:
    return centre_count(int(usable(context).rows.num_rows), context.config.n_clusters, context.config.nouns.images_per_centre)


def _settings(config: PipelineConfig) -> dict[str, object]:
    return dict(output_settings(config.nouns))


def _inputs(context: Context) -> list[str]:
    check_enough(context)
    return [vocabulary.STAGE.fingerprint(context), encode.STAGE.fingerprint(context), usable(context).digest, str(_count(context))]


def _images(context: Context, names: Sequence[str]) -> int:
    return int(usable(context).rows.num_rows)


STAGE = Stage(
    name="nouns",
    version=1,
    settings=_settings,
    inputs=_inputs,
    steps=(
        Step((SEMANTIC_CENTRES_TABLE,), lambda context: ["all"], place, _images, whole=True),
        Step((SELECTED_NOUNS_TABLE,), lambda context: ["all"], select, lambda context, names: 0, whole=True),
        Step((COUNTERPARTS_TABLE,), lambda context: usable(context).part_names, combine, rows_of_parts, whole=True),
    ),
)
