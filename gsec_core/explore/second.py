"""Posteriors of a run's model for one image, to find its second most likely cluster."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.ensemble import head_posteriors
from gsec_core.errors import Refused
from gsec_core.stages import align, text
from gsec_core.stages.base import Context
from gsec_core.stages.prepare import load_halves, plan_of


class Model:
    """The head of a run, used as in `assign` for images that were not in the fit. Imports torch.

    Raises Refused if the run's members look at pixels, because then the head cannot replace them.
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
        """Posteriors of the clusters for one image, (clusters,), given its vectors, (1, d) each."""
        matrices = text.halves_from(self._context, embedding, joint, second)
        features = self._plan.features(matrices, self._halves, self._weight)
        found: NDArray[np.float32] = head_posteriors(self._head, features, slice(0, 1), "cpu")[0].numpy()
        return found
