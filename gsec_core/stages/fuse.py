"""fuse: a text counterpart for every image, from the descriptions of a few.

Reads `representative_captions` and `embeddings`; writes `caption_embeddings` (a row a description) and `counterparts`
(a row an image).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gsec_core.arrays import to_column, to_matrix
from gsec_core.clustering.fusion import Counterparts, softmax_counterparts
from gsec_core.config import output_settings
from gsec_core.stages import describe, encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.stages.canonical import load_joint, load_parts, parts, rows_of_parts, usable
from gsec_core.tables import (
    CAPTION_EMBEDDINGS_TABLE,
    COUNTERPARTS_TABLE,
    DESCRIBED,
    FREE,
    REPRESENTATIVE_CAPTIONS_TABLE,
    caption_embeddings_schema,
    counterparts_schema,
)


def embed(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Every description as a vector; stage describe sees to it that there is one."""
    counted = counted_captions(context)
    texts = counted["text"].combine_chunks().dictionary_encode()  # equal ones are encoded once
    vectors = encode.loaded_encoder(context.config).encode_texts(texts.dictionary.to_pylist()).astype(np.float16)[texts.indices.to_numpy()]
    schema = caption_embeddings_schema(vectors.shape[1])
    embeddings = to_column(vectors, schema.field("embedding").type)
    columns = [np.arange(len(vectors)), counted["prototype"], counted["band"], counted["text"], embeddings]
    yield Finished("all", (pa.table(columns, schema=schema),), {"captions": len(vectors)})


def counted_captions(context: Context) -> pa.Table:
    """The rows of `representative_captions` that hold a description, in order; a row's place is the description's number."""
    captions = context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).read("all")
    return captions.filter(pc.and_(pc.is_in(captions["status"], pa.array([DESCRIBED, FREE])), pc.is_valid(captions["text"])))


def combine(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """The counterparts of the images of the named parts."""
    X = load_joint(context)
    schema = counterparts_schema(load_captions(context).shape[1])
    for part in parts(context, names):
        blocks = []
        with threadpool_limits(context.config.threads or None):
            for block in _combined(context, X[part.start : part.stop]):
                blocks.append(block._replace(vectors=block.vectors.astype(np.float16)))
                progress(len(block.best))
        vectors, best, weight = (np.concatenate(column) for column in zip(*blocks, strict=True))
        counterparts = to_column(vectors, schema.field("counterpart").type)
        yield Finished(part.name, (pa.table([part.rows["image_id"], counterparts, best, weight], schema=schema),), {})


def counterparts_of(context: Context, joint: NDArray[np.float16]) -> NDArray[np.float16]:
    """The counterparts of other images by the run's descriptions: joint embeddings (n, d) to (n, dt), n above 0, as they would be stored."""
    with threadpool_limits(context.config.threads or None):
        return np.concatenate([block.vectors.astype(np.float16) for block in _combined(context, joint)])


def _combined(context: Context, joint: NDArray[np.float16]) -> Iterator[Counterparts]:
    config, captions = context.config.fuse, load_captions(context)
    return softmax_counterparts(joint, captions, captions, config.tau, config.max_lost_weight)


@once
def load_captions(context: Context) -> NDArray[np.float16]:
    """The embeddings of the run's descriptions, (M, dt), in memory."""
    return to_matrix(context.shards(STAGE, CAPTION_EMBEDDINGS_TABLE).read("all", ["embedding"]), "embedding")


def load_counterparts(context: Context) -> NDArray[np.float16]:
    """The counterparts of all images in canonical order, (n, dt); a memory map as `canonical.load_embeddings` is."""
    return load_parts(context, context.shards(STAGE, COUNTERPARTS_TABLE), "counterpart")


STAGE = Stage(
    name="fuse",
    version=1,
    settings=lambda config: output_settings(config.fuse),
    inputs=lambda context: [encode.STAGE.fingerprint(context), describe.STAGE.fingerprint(context), usable(context).digest],
    steps=(
        Step((CAPTION_EMBEDDINGS_TABLE,), lambda context: ["all"], embed, lambda context, names: 0, whole=True),
        Step((COUNTERPARTS_TABLE,), lambda context: usable(context).part_names, combine, rows_of_parts, whole=True),
    ),
)
