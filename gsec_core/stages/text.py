"""The second half of a run's features (counterparts), from the text source that the settings name. Delegates to that source's module."""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.features import Rows
from gsec_core.config import PipelineConfig
from gsec_core.stages import encode, fuse, nouns, second, vocabulary
from gsec_core.stages.base import Context, Stage
from gsec_core.stages.canonical import load_embeddings
from gsec_core.store import Run
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS

_MODULES: dict[str, ModuleType] = {CAPTIONS: fuse, NOUNS: nouns, ENCODER: second}
"""Each module has load_counterparts, counterparts_of, text_weight and weight_deserved."""


_STAGES: dict[str, tuple[Stage, ...]] = {CAPTIONS: (fuse.STAGE,), NOUNS: (vocabulary.STAGE, nouns.STAGE), ENCODER: (encode.SECOND,)}

ALL_STAGES = tuple(stage for stages in _STAGES.values() for stage in stages)
"""The stages of all text sources."""


def stages(config: PipelineConfig) -> tuple[Stage, ...]:
    """The stages that make counterparts under these settings, in the order they run."""
    module = _module(config)
    return () if module is None else _STAGES[config.text_source]


def check(config: PipelineConfig) -> None:
    """Raises Refused for settings of the text source that the method cannot use."""
    if config.text_source == NOUNS:
        nouns.check(config)


def fingerprints(context: Context) -> list[str]:
    """Fingerprint of the last of `stages`, for the stages that read its tables; empty without one."""
    return [stage.fingerprint(context) for stage in stages(context.config)[-1:]]


def halves(context: Context, X: NDArray[np.float16]) -> list[NDArray[Any]]:
    """``X`` (n, d), the embeddings of all images in canonical order, and their counterparts (n, dt) where there are any."""
    module = _module(context.config)
    return _halves(X, None if module is None else module.load_counterparts(context))


def has_counterparts(context: Context) -> bool:
    """Whether `halves` returns two matrices. Reads at most one shard."""
    source = context.config.text_source
    return source != NONE and (source != NOUNS or nouns.has_counterparts(context))


def halves_of(context: Context, images: Context, rows: Rows) -> list[NDArray[Any]]:
    """Embeddings (rows, d) of the given rows of the run ``images``, and their counterparts (rows, dt) by the run ``context``, where there are any."""
    module = _module(context.config)
    return _halves(load_embeddings(images)[rows], None if module is None else module.counterparts_of(context, images, rows))


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
    return next((source for source, stages in _STAGES.items() if stages[-1].name in names), NONE)


def weight(context: Context) -> float:
    """Weight of the text half relative to the image half."""
    module = _module(context.config)
    return 0.0 if module is None else float(module.text_weight(context))


def weight_deserved(context: Context) -> float:
    """The weight of the text half by the quality of the counterparts, regardless of the settings."""
    module = _module(context.config)
    return 0.0 if module is None else float(module.weight_deserved(context))


def _module(config: PipelineConfig) -> ModuleType | None:
    source = config.text_source
    return None if source == NONE else _MODULES[source]
