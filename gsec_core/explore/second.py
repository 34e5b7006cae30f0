"""What a run's model finds next likely of one image."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.ensemble import head_posteriors
from gsec_core.errors import Refused
from gsec_core.stages import align, text
from gsec_core.stages.base import Context
from gsec_core.stages.prepare import load_halves, plan_of


class Model:
    """The head of a run, as `assign` asks it of images that are not of the fit. Imports torch.

    Raises Refused where it cannot stand for the members, because they look at the images themselves.
    """

    def __init__(self, context: Context) -> None:
        self._context = context.model if context.keeps else context
        self._plan = plan_of(self._context.config)
        if self._plan.pixel_side:
            raise Refused(f"method = {self._context.config.method}: its members look at the images themselves, so there is no second choice.")
        self._head = align.load_head(context)
        self._halves = load_halves(self._context)
        self._weight = text.weight(self._context)

    def posteriors(self, embedding: NDArray[np.float16], joint: NDArray[np.float16], second: NDArray[Any] | None) -> NDArray[np.float32]:
        """Of one image by its vectors, (1, d) each: (clusters,)."""
        matrices = text.halves_from(self._context, embedding, joint, second)
        features = self._plan.features(matrices, self._halves, self._weight)
        found: NDArray[np.float32] = head_posteriors(self._head, features, slice(0, 1), "cpu")[0].numpy()
        return found
