"""Counterparts from a second encoder instead of text: each image's embedding by that encoder.

This module defines no stage: `encode.SECOND` makes the embeddings, and `prepare` reads them.
"""

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.features import Rows
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_second

WEIGHT = 0.5
"""Both encoders have the same weight: without labels there is no telling which is better."""


def load_counterparts(context: Context) -> NDArray[np.float16]:
    """See `canonical.load_second`."""
    return load_second(context)


def counterparts_of(context: Context, images: Context, rows: Rows) -> NDArray[np.float16]:
    """The counterparts of the given rows of the run ``images``, (rows, dim); the same for every ``context``."""
    return load_second(images)[rows]


def text_weight(context: Context) -> float:
    """Weight of the second encoder."""
    return WEIGHT


def weight_deserved(context: Context) -> float:
    """As `text_weight`."""
    return WEIGHT
