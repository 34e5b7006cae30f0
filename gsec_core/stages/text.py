"""The second half of a run's features (counterparts), from the text source that the settings name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import Rows
from gsec_core.config import PipelineConfig
from gsec_core.stages import encode, fuse, nouns, vocabulary
from gsec_core.stages.base import Context, Stage
from gsec_core.stages.canonical import load_embeddings, load_second
from gsec_core.store import Run
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS
from gsec_core.text.fusion import LEAST_WEIGHT

SECOND_WEIGHT = 0.5
"""Weight of a second encoder, the same as that of the first: without labels there is no telling which is better."""


class _Source(NamedTuple):
    """What a text source does; by default nothing. Counterparts are None if images have none of their own."""

    stages: tuple[Stage, ...] = ()
    """The stages that make counterparts, in the order they run; other stages read the tables of the last."""
    load: Callable[[Context], NDArray[np.float16] | None] = lambda context: None
    """Returns the counterparts of all images in canonical order, (n, dt)."""
    of: Callable[[Context, Context, Rows], NDArray[np.float16] | None] = lambda context, images, rows: None
    """Returns the counterparts (rows, dt), by the first run, of the given rows of the second run."""
    weight: Callable[[Context], float] = lambda context: 0.0
    """Returns the weight of the text half relative to the image half."""
    weight_deserved: Callable[[Context], float] = lambda context: 0.0
    """Returns that weight by the quality of the counterparts, regardless of the settings."""


_SOURCES = {
    CAPTIONS: _Source(
        stages=(fuse.STAGE,),
        load=fuse.load_counterparts,
        of=fuse.counterparts_of,
        weight=lambda context: fuse.load_model(context).text_weight,
        weight_deserved=fuse.weight_deserved,
    ),
    NOUNS: _Source(
        stages=(vocabulary.STAGE, nouns.STAGE),
        load=nouns.load_counterparts,
        of=nouns.counterparts_of,
        weight=lambda context: context.config.nouns.weight,
        weight_deserved=lambda context: LEAST_WEIGHT,  # they are made from image embeddings alone
    ),
    ENCODER: _Source(
        stages=(encode.SECOND,),
        load=load_second,
        of=lambda context, images, rows: load_second(images)[rows],
        weight=lambda context: SECOND_WEIGHT,
        weight_deserved=lambda context: SECOND_WEIGHT,
    ),
    NONE: _Source(),
}

ALL_STAGES = tuple(stage for source in _SOURCES.values() for stage in source.stages)
"""The stages of all text sources."""


def stages(config: PipelineConfig) -> tuple[Stage, ...]:
    """The stages that make counterparts under these settings, in the order they run."""
    return _SOURCES[config.text_source].stages


def check(config: PipelineConfig) -> None:
    """Raises Refused for settings of the text source that the method cannot use."""
    if config.text_source == NOUNS:
        nouns.check(config)


def fingerprints(context: Context) -> list[str]:
    """Fingerprint of the last of `stages`, for the stages that read its tables; empty without one."""
    return [stage.fingerprint(context) for stage in stages(context.config)[-1:]]


def halves(context: Context, X: NDArray[np.float16]) -> list[NDArray[Any]]:
    """``X`` (n, d), the embeddings of all images in canonical order, and their counterparts (n, dt) where there are any."""
    return _halves(X, _SOURCES[context.config.text_source].load(context))


def has_counterparts(context: Context) -> bool:
    """Whether `halves` returns two matrices. Reads at most one shard."""
    source = context.config.text_source
    return source != NONE and (source != NOUNS or nouns.has_counterparts(context))


def halves_of(context: Context, images: Context, rows: Rows) -> list[NDArray[Any]]:
    """Embeddings (rows, d) of the given rows of the run ``images``, and their counterparts (rows, dt) by the run ``context``, where there are any."""
    return _halves(load_embeddings(images)[rows], _SOURCES[context.config.text_source].of(context, images, rows))


def halves_from(context: Context, X: NDArray[np.float16], joint: NDArray[np.float16], second: NDArray[np.float16] | None) -> list[NDArray[Any]]:
    """As `halves_of`, for given vectors: embeddings ``X`` (rows, d), ``joint`` in the space shared with text, and ``second`` of the second encoder, if any."""
    source = context.config.text_source
    if source == CAPTIONS:
        return _halves(X, fuse.counterparts_from(context, X, joint))
    if source == NOUNS:
        return _halves(X, nouns.counterparts_from(context, joint))
    return _halves(X, second)


def _halves(X: NDArray[Any], counterparts: NDArray[Any] | None) -> list[NDArray[Any]]:
    return [X] if counterparts is None else [X, counterparts]


def nouns_of(context: Context) -> NDArray[np.float16] | None:
    """The vectors of the selected nouns, (kept, dt); None if the text source is not nouns."""
    return nouns.load_nouns(context)[1] if context.config.text_source == NOUNS else None


def source_of(run: Run) -> str:
    """The text source of a run, found by its stages; works also if the package of the run's method is no longer installed."""
    names = run.request()["stages"]
    return next((name for name, source in _SOURCES.items() if source.stages and source.stages[-1].name in names), NONE)


def weight(context: Context) -> float:
    """Weight of the text half relative to the image half."""
    return _SOURCES[context.config.text_source].weight(context)


def weight_deserved(context: Context) -> float:
    """The weight of the text half by the quality of the counterparts, regardless of the settings."""
    return _SOURCES[context.config.text_source].weight_deserved(context)
