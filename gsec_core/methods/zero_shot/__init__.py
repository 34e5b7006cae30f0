"""Zero-shot: the names of the clusters are known, and an image gets the nearest."""

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import NOUNS, NounSelection


class ZeroShotSettings(Section):
    """Of the estimator `gsec_core.ZeroShot`; there is nothing to set. The names are `text.vocabulary`, a file with one a line, synonyms separated by `|`."""


METHOD = Method(
    name="zero-shot",
    title="Zero-shot classification",
    paper="https://arxiv.org/abs/2103.00020",
    does="No clustering: you give a name for each cluster, and an image goes to the name that it is nearest to.",
    texts=(NOUNS,),
    Settings=ZeroShotSettings,
    estimator="gsec_core.methods.zero_shot.estimator:ZeroShot",
    nouns=lambda n_clusters: NounSelection(),
)
