"""SEIC: clusters on which images and texts agree, in single images, in clusters and in centres."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NOUNS, NounSelection

N_MEMBERS = 4


class SEICSettings(Section):
    """Parameters of the estimator `gsec_core.SEIC`, and a switch for its stage two."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Training steps of a member. Default: 200 epochs as in the paper, in batches of 1,024 images (with more than 128 clusters, 8 images for "
        "each cluster, at most 8,192), at least 800 steps, and at most those of 50,000 images (1,281,167 with more than 128 clusters).",
    )
    enhance: bool = Field(
        False,
        description="Stage two: train the vision tower of a CLIP encoder on the clusters. This reads all images 41 times and needs a GPU; a CPU is used only "
        "with train.device = cpu. `gsec export --encoder` writes the trained encoder, so that another run can cluster with it.",
    )


SELECTION = NounSelection(per_centre=200, nearest=True, tau=0.01, in_counterpart=50)
"""Selects many nouns near each of as many centres as clusters; a counterpart is made from the nearest nouns of an image."""

METHOD = Method(
    name="seic",
    title="SEIC",
    paper="https://arxiv.org/abs/2508.01254",
    does="Linear maps of images and of their texts learn to agree on images, clusters and centres. Favours clusters of equal size. Can adapt a CLIP.",
    texts=(NOUNS, CAPTIONS, ENCODER),
    Settings=SEICSettings,
    estimator="gsec_core.methods.seic.estimator:SEIC",
    n_members=lambda settings: N_MEMBERS,
    nouns=lambda n_clusters: SELECTION,
    enhancer="gsec_core.methods.seic.enhance:Enhancer",
    enhanced_by="enhance",
)
