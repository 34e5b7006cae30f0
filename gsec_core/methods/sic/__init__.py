"""SIC: a linear head trained on neighbours, and on nouns near each cluster's most confident images."""

from typing import Literal

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import NOUNS, NounSelection

MANY_CLUSTERS = 100
"""With more clusters, nouns and schedule are those published for ImageNet."""

Mapping = Literal["adjusted", "centres", "direct"]

N_MEMBERS = 10


class SICSettings(Section):
    """Parameters of the estimator `gsec_core.SIC`."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Training steps of a member. Default: 100 epochs in batches of 128 images (4,096 with more than 100 clusters), at least 3,900 steps, and "
        "at most those of 50,000 images (1,281,167 with more than 100 clusters).",
    )
    mapping: Mapping = Field(
        "adjusted",
        description="How the nouns of a cluster are found. `adjusted`: nouns near the images of which the head is most certain, found again in every epoch; "
        "`centres`: nouns near the centres of a k-means of the images, found once; `direct`: by a k-means of the nouns themselves.",
    )
    beta: float = Field(1.0, ge=0, le=100, description="Weight of the labels that the nouns give to images, in the loss.")
    start_at_centres: bool | None = Field(
        None, description="Start heads at the centres of a k-means of the images, instead of at random. Default: only with more than 100 clusters."
    )


def nouns(n_clusters: int) -> NounSelection:
    """Selects many nouns near each of as many centres as clusters, except those near the mean noun. There are no counterparts beside the images."""
    if n_clusters <= MANY_CLUSTERS:
        return NounSelection(per_centre=500, nearest=True, unlike=0.05)
    return NounSelection(per_centre=300, nearest=True, unlike=0.1)


METHOD = Method(
    name="sic",
    title="SIC",
    paper="https://arxiv.org/abs/2208.09849",
    does="A linear head, trained on neighbours and on nouns near each cluster's most certain images. Favours clusters of equal size.",
    texts=(NOUNS,),
    Settings=SICSettings,
    estimator="gsec_core.methods.sic.estimator:SIC",
    n_members=lambda settings: N_MEMBERS,
    nouns=nouns,
)
