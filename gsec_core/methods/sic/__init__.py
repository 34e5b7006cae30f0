"""SIC: a linear head trained on neighbours, and on nouns near each cluster's most confident images."""

from typing import Literal

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import NOUNS, NounSelection

MANY_CLUSTERS = 100
"""With more clusters, nouns and schedule are those published for ImageNet."""

Mapping = Literal["adjusted", "centres", "direct"]


class SICSettings(Section):
    """Parameters of the estimator `gsec_core.SIC`."""

    max_steps: int | None = Field(None, ge=1, le=1_000_000, description="Steps of a member. Default: 100 epochs of batches of 128, and at least 3,900.")
    mapping: Mapping = Field(
        "adjusted",
        description="Where a cluster's nouns come from. `adjusted`: near the images of which the head is most certain, looked up in every epoch; "
        "`centres`: near the centres of a k-means of the images, looked up once; `direct`: from a k-means of the nouns themselves.",
    )
    beta: float = Field(1.0, ge=0, le=100, description="Weight of the labels that nouns give.")
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
    does="A linear head, taught by neighbours and by nouns near the most certain images of each cluster. Favours clusters of equal size.",
    texts=(NOUNS,),
    Settings=SICSettings,
    estimator="gsec_core.methods.sic.estimator:SIC",
    nouns=nouns,
)
