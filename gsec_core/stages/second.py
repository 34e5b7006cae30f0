"""The counterpart of an image where there is no text: the image as the run's second encoder sees it.

There is no stage here: `encode.SECOND` has made it, and `prepare` reads it where it is.
"""

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.features import Rows
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_second

WEIGHT = 0.5
"""Without labels nothing says which of two encoders knows more."""


def load_counterparts(context: Context) -> NDArray[np.float16]:
    """See `canonical.load_second`."""
    return load_second(context)


def counterparts_of(context: Context, images: Context, rows: Rows) -> NDArray[np.float16]:
    """Of these rows of the run ``images``, (rows, dim), whichever run asks."""
    return load_second(images)[rows]


def text_weight(context: Context) -> float:
    """Both encoders count the same."""
    return WEIGHT


def weight_deserved(context: Context) -> float:
    """The same."""
    return WEIGHT
