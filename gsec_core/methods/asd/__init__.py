"""ASD: finds labels for a sample of the images, and trains a semi-supervised learner on them."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS


class ASDSettings(Section):
    """Parameters of the estimator `gsec_core.ASD`."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Steps of a member: three eighths for the instance classifier, the others for FixMatch. Default: 1,600, on pixels 20,000.",
    )
    pixels: bool = Field(
        False, description="Members are small networks that learn from the thumbnails, as published, instead of linear maps of the embeddings."
    )
    side: int = Field(32, ge=8, le=96, description="pixels: side of the square that is cut from each thumbnail, in pixels; at most encode.thumbnail_size.")
    depth: int = Field(10, ge=10, le=100, description="pixels: depth of the wide residual network: 10, 16, 22, 28, and so on by 6.")
    width: int = Field(1, ge=1, le=16, description="pixels: width of the wide residual network. FixMatch has depth 28 and width 2, for which a CPU takes days.")


METHOD = Method(
    name="asd",
    title="ASD",
    paper="https://arxiv.org/abs/2509.20976",
    does="A sample with one class for each image; classes between which images change form a cluster, and FixMatch learns the clusters from the sample.",
    texts=(NONE, NOUNS, CAPTIONS, ENCODER),
    Settings=ASDSettings,
    estimator="gsec_core.methods.asd.estimator:ASD",
)
