"""A trained member of an ensemble, as it is stored."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Member(NamedTuple):
    """What one training came to."""

    parameters: Mapping[str, NDArray[np.float32]]
    """Its arrays by name; which ones there are is the method's."""
    steps: int
    """Steps until it stopped."""
    changed: float
    """Share of the probed labels that changed over its last 10 steps; 1 if there were fewer."""
    loss: float
    """Loss of its last step."""
