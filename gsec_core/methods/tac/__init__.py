"""TAC: text-aided clustering, with trained heads and without."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NOUNS


class TACSettings(Section):
    """Parameters of the estimator `gsec_core.TAC`."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Steps of a member. Default: the published epochs (20 of batches of 512; with more than 100 clusters 100 of 8,192), and at least 180.",
    )


class TACKMeansSettings(Section):
    """Parameters of the estimator `gsec_core.TACKMeans`."""

    n_init: int = Field(20, ge=1, le=1000, description="Starts of a member's k-means; the best by the k-means objective is kept.")


METHOD = Method(
    name="tac",
    title="TAC",
    paper="https://arxiv.org/abs/2310.11989",
    does="Two perceptrons, on images and on their texts, that teach each other's neighbours. Favours clusters of equal size.",
    texts=(NOUNS, CAPTIONS, ENCODER),
    Settings=TACSettings,
    estimator="gsec_core.methods.tac.estimator:TAC",
)

WITHOUT_TRAINING = Method(
    name="tac-kmeans",
    title="TAC without training",
    paper="https://arxiv.org/abs/2310.11989",
    does="k-means of images and their texts side by side.",
    texts=(NOUNS, CAPTIONS, ENCODER),
    Settings=TACKMeansSettings,
    estimator="gsec_core.methods.tac.kmeans:TACKMeans",
)
