"""Where a run's second half comes from: the stage that makes counterparts, whichever the settings name, or none."""

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
"""Each has load_counterparts, counterparts_of, text_weight and weight_deserved."""


_STAGES: dict[str, tuple[Stage, ...]] = {CAPTIONS: (fuse.STAGE,), NOUNS: (vocabulary.STAGE, nouns.STAGE), ENCODER: (encode.SECOND,)}

ALL_STAGES = tuple(stage for stages in _STAGES.values() for stage in stages)
"""Whatever the settings."""


def stages(config: PipelineConfig) -> tuple[Stage, ...]:
    """Those that make counterparts, in the order they run."""
    module = _module(config)
    return () if module is None else _STAGES[config.text_source]


def check(config: PipelineConfig) -> None:
    """Raises Refused for settings of the source that the method cannot use."""
    if config.text_source == NOUNS:
        nouns.check(config)


def fingerprints(context: Context) -> list[str]:
    """Of the last of these, for stages that read what it makes."""
    return [stage.fingerprint(context) for stage in stages(context.config)[-1:]]


def halves(context: Context, X: NDArray[np.float16]) -> list[NDArray[Any]]:
    """All images, ``X`` (n, d) in canonical order, and their counterparts (n, dt) where there are others."""
    module = _module(context.config)
    return _halves(X, None if module is None else module.load_counterparts(context))


def has_counterparts(context: Context) -> bool:
    """Whether `halves` are two. Reads no more than a shard."""
    source = context.config.text_source
    return source != NONE and (source != NOUNS or nouns.has_counterparts(context))


def halves_of(context: Context, images: Context, rows: Rows) -> list[NDArray[Any]]:
    """These images of the run ``images``, (rows, d), and the counterparts (rows, dt) that this run gives them, where it gives any."""
    module = _module(context.config)
    return _halves(load_embeddings(images)[rows], None if module is None else module.counterparts_of(context, images, rows))


def halves_from(context: Context, X: NDArray[np.float16], joint: NDArray[np.float16], second: NDArray[np.float16] | None) -> list[NDArray[Any]]:
    """The same of images whose vectors are at hand: embeddings (rows, d), those in the space shared with text, and those of the second encoder, if any."""
    source = context.config.text_source
    if source == CAPTIONS:
        return _halves(X, fuse.counterparts_from(context, X, joint))
    if source == NOUNS:
        return _halves(X, nouns.counterparts_from(context, joint))
    return _halves(X, second)


def _halves(X: NDArray[Any], counterparts: NDArray[Any] | None) -> list[NDArray[Any]]:
    return [X] if counterparts is None else [X, counterparts]


def nouns_of(context: Context) -> NDArray[np.float16] | None:
    """The vectors of the nouns that stand for the images, (kept, dt), where text comes from nouns."""
    return nouns.load_nouns(context)[1] if context.config.text_source == NOUNS else None


def source_of(run: Run) -> str:
    """Where a run's text came from, by its stages: also if the package of its method is not there any more."""
    names = run.request()["stages"]
    return next((source for source, stages in _STAGES.items() if stages[-1].name in names), NONE)


def weight(context: Context) -> float:
    """Of the text half against the image half."""
    module = _module(context.config)
    return 0.0 if module is None else float(module.text_weight(context))


def weight_deserved(context: Context) -> float:
    """The same, as far as the counterparts have earned it, whatever the settings say."""
    module = _module(context.config)
    return 0.0 if module is None else float(module.weight_deserved(context))


def _module(config: PipelineConfig) -> ModuleType | None:
    source = config.text_source
    return None if source == NONE else _MODULES[source]
