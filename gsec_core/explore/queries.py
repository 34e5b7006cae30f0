"""Convert a search by words or by an image to a vector. Encoders are loaded at the first search."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsec_core.config import PipelineConfig
from gsec_core.devices import return_freed_memory, threads_of_torch
from gsec_core.encoders import Encoder, check_texts
from gsec_core.errors import Refused
from gsec_core.images import decode as images
from gsec_core.sources.base import RejectedImage
from gsec_core.stages import encode
from gsec_core.stages.base import Context

MOST_LETTERS = 500
"""Maximal number of characters of a search by words; encoders do not read more."""

LITE_NOTE = (
    "The encoder `lite` sees an image as ImageNet's thousand classes. It finds these and things with a similar meaning, but no colours, places, styles "
    "or letters. A CLIP finds more."
)
LITE_LEAST = 0.42
"""`Query.least` of the encoder `lite`, from searches in the demo's photographs: above this cosine most images are right, below it few."""

_LOCK = Lock()
_ENCODED: set[str] = set()


class Query(NamedTuple):
    """A vector and where to look for it."""

    stage: str
    """Name of the encoder's stage."""
    column: str
    """Column of its table `embeddings`."""
    vector: NDArray[np.float32]
    """(1, d)."""
    note: str | None = None
    """A sentence for people about what this encoder can find."""
    least: float = -1.0
    """If even the nearest image has a cosine below this, the result may be arbitrary."""


def words(context: Context, text: str) -> Query:
    """Encode words or a sentence with the first of the run's encoders that has a text side, in the same prompts as the words of vocabularies.

    Raises Refused if no encoder has a text side, or if the text is empty or too long.
    """
    text = " ".join(text.split())
    if not text:
        raise Refused("search: there is nothing to search for. Give a word or a sentence.")
    if len(text) > MOST_LETTERS:
        raise Refused(f"search: {len(text):,} letters; give {MOST_LETTERS} at most.")
    stage = _with_texts(context)
    _check_same(context, stage)
    from gsec_core.stages import vocabulary
    from gsec_core.text.vocabulary import prompted

    with _encoding(stage.load, context.config, f"words by {stage.encoder(context.config)}") as encoder:
        vector = vocabulary.embedded(encoder, [prompted(text, vocabulary.prompts_of(context.config))])
    name = stage.encoder(context.config)
    query = Query(stage.name, "embedding" if encoder.joint_dim is None else "joint", _finite(vector, name))
    return query._replace(note=LITE_NOTE, least=LITE_LEAST) if name == "lite" else query


def image(context: Context, data: bytes) -> Query:
    """Encode an image, given the bytes of its file, with the run's encoder. It is decoded as in the pipeline. Raises Refused if it cannot be decoded."""
    _check_same(context, encode.STAGE)
    with _encoding(encode.STAGE.load, context.config, f"images by {encode.STAGE.encoder(context.config)}") as encoder:
        try:
            with images.opened(data, 2 * encoder.side) as picture:
                pixels = encoder.preprocess(picture.image)
        except RejectedImage as error:
            raise Refused(f"The image cannot be used: {error}.") from None
        vector = encoder.encode_images(pixels[None]).image
    return Query(encode.STAGE.name, "embedding", _finite(vector, encode.STAGE.encoder(context.config)))


@contextmanager
def _encoding(load: Callable[[PipelineConfig], Encoder], config: PipelineConfig, what: str) -> Iterator[Encoder]:
    """Context manager with the encoder, for one search at a time and with one thread: several threads would wait for each other longer than they work.

    The first search of a kind loads the encoder with all threads, and returns freed memory to the system.
    """
    with _LOCK:
        encoder = load(config)
        if what in _ENCODED:
            with threads_of_torch(1):
                yield encoder
            return
        yield encoder
        _ENCODED.add(what)
        return_freed_memory()


def _with_texts(context: Context) -> encode.Encoding:
    stages: Sequence[encode.Encoding] = encode.stages_of(context.run)
    for stage in stages:
        try:
            check_texts(stage.encoder(context.config))
        except Refused:
            continue
        return stage
    raise Refused(f"The encoder {encode.encoders_of(context.run)} cannot read words. Search by an image, or run gsec with `lite` or a CLIP.")


def _check_same(context: Context, stage: encode.Encoding) -> None:
    if context.run.fingerprint(stage.name) != stage.fingerprint(context):
        raise Refused(f"The encoder {stage.encoder(context.config)}, or its checkpoint, is not the one that encoded run {context.run.id}. Put it back.")


def _finite(vector: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if not np.isfinite(vector).all():
        raise Refused(f"The encoder {name} gives no finite vector for this.")
    return vector
