"""TAC: text-aided clustering, with trained heads and without."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NOUNS

N_MEMBERS = 10


class TACSettings(Section):
    """Parameters of the estimator `gsec_core.TAC`."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Training steps of a member. Default as in the paper: 20 epochs in batches of 512 images (with more than 100 clusters, 100 epochs in "
        "batches of 8,192), at least 180 steps, and at most those of 50,000 images (1,281,167 with more than 100 clusters).",
    )


class TACKMeansSettings(Section):
    """Parameters of the estimator `gsec_core.TACKMeans`."""

    n_init: int = Field(20, ge=1, le=1000, description="Number of starts of a member's k-means. The start with the best objective is kept.")


METHOD = Method(
    name="tac",
    title="TAC",
    paper="https://arxiv.org/abs/2310.11989",
    does="Perceptrons for images and for texts, each trained on the other's neighbours. Favours clusters of equal size.",
    texts=(NOUNS, CAPTIONS, ENCODER),
    Settings=TACSettings,
    estimator="gsec_core.methods.tac.estimator:TAC",
    n_members=lambda settings: N_MEMBERS,
)

WITHOUT_TRAINING = Method(
    name="tac-kmeans",
    title="TAC without training",
    paper="https://arxiv.org/abs/2310.11989",
    does="k-means of images and texts, concatenated.",
    texts=(NOUNS, CAPTIONS, ENCODER),
    Settings=TACKMeansSettings,
    estimator="gsec_core.methods.tac.kmeans:TACKMeans",
    n_members=lambda settings: N_MEMBERS,
)
