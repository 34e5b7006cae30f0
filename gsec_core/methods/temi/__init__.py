"""TEMI: heads that give neighbours the same label, trained by pointwise mutual information."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS


class TEMISettings(Section):
    """Parameters of the estimator `gsec_core.TEMI`."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Steps of the heads. Default: 200 epochs of batches of 512 (1,024 from 1,000 clusters on), and at least 7,200.",
    )
    beta: float = Field(0.6, gt=0.5, le=1, description="Exponent of the agreement. At 1 sizes are free; smaller values favour equal sizes.")


METHOD = Method(
    name="temi",
    title="TEMI",
    paper="https://arxiv.org/abs/2303.17896",
    does="Perceptrons, each with a slowly moving copy as its teacher, that give an image and its neighbours the same label.",
    texts=(NONE, NOUNS, CAPTIONS, ENCODER),
    Settings=TEMISettings,
    estimator="gsec_core.methods.temi.estimator:TEMI",
)
