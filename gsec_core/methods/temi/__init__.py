"""TEMI: heads that give neighbours the same label, trained by pointwise mutual information."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS

N_HEADS = 4
"""Number of heads that are trained together, as a block of members. The paper has 50, its code 16; on two cores each takes minutes."""


class TEMISettings(Section):
    """Parameters of the estimator `gsec_core.TEMI`."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Training steps of the heads. Default: 200 epochs in batches of 512 images (1,024 with 1,000 clusters or more), at least 7,200 steps, and "
        "at most those of 50,000 images (1,281,167 with 1,000 clusters or more).",
    )
    beta: float = Field(
        0.6,
        gt=0.5,
        le=1,
        description="Exponent of the agreement between neighbours in the loss. At 1 clusters may have any size; smaller values favour equal sizes.",
    )


METHOD = Method(
    name="temi",
    title="TEMI",
    paper="https://arxiv.org/abs/2303.17896",
    does="Perceptrons, each taught by a slow copy of itself, learn to give an image and its neighbours the same label.",
    texts=(NONE, NOUNS, CAPTIONS, ENCODER),
    Settings=TEMISettings,
    estimator="gsec_core.methods.temi.estimator:TEMI",
    n_members=lambda settings: N_HEADS,
)
