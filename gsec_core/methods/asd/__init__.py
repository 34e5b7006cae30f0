"""ASD: finds labels for a sample of the images, and trains a semi-supervised learner on them."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS

N_MEMBERS = 4
"""A member takes seconds for ten clusters, and minutes for hundreds."""


class ASDSettings(Section):
    """Parameters of the estimator `gsec_core.ASD`."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Training steps of a member: three eighths for the instance classifier, the rest for FixMatch. Default: 1,600; with asd.pixels 20,000.",
    )
    pixels: bool = Field(
        False, description="Members are small networks that learn from the thumbnails, as in the paper, instead of linear maps of the embeddings."
    )
    side: int = Field(
        32,
        ge=8,
        le=96,
        description="With asd.pixels: side in pixels to which the central square of each thumbnail is resized; at most encode.thumbnail_size.",
    )
    depth: int = Field(10, ge=10, le=100, description="With asd.pixels: depth of the wide residual network: 10, 16, 22, 28, and so on in steps of 6.")
    width: int = Field(
        1,
        ge=1,
        le=16,
        description="With asd.pixels: width of the wide residual network. FixMatch's own network has depth 28 and width 2; a CPU needs days to train it.",
    )


METHOD = Method(
    name="asd",
    title="ASD",
    paper="https://arxiv.org/abs/2509.20976",
    does="Trains a classifier with one class per sampled image. Classes between which images change form a cluster, and FixMatch learns the clusters.",
    texts=(NONE, NOUNS, CAPTIONS, ENCODER),
    Settings=ASDSettings,
    estimator="gsec_core.methods.asd.estimator:ASD",
    n_members=lambda settings: N_MEMBERS,
)
