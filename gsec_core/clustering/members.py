"""A trained member of an ensemble, as it is stored."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Member(NamedTuple):
    """Result of training one member."""

    parameters: Mapping[str, NDArray[np.float32]]
    """The member's arrays by name; the names depend on the method."""
    steps: int
    """Number of training steps."""
    changed: float
    """Share of the probed labels that changed over the last 10 steps; 1 if there were fewer steps."""
    loss: float
    """Loss of the last step."""
