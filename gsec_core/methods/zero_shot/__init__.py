"""Zero-shot: the names of the clusters are given, and each image is assigned to the nearest name."""

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import NOUNS, NounSelection


class ZeroShotSettings(Section):
    """None: `gsec_core.ZeroShot` has no parameters. Give the names as `text.vocabulary = file:PATH`, one cluster per line, with synonyms separated by `|`."""


METHOD = Method(
    name="zero-shot",
    title="Zero-shot classification",
    paper="https://arxiv.org/abs/2103.00020",
    does="No clustering: you give a name for each cluster, and each image goes to the nearest name.",
    texts=(NOUNS,),
    Settings=ZeroShotSettings,
    estimator="gsec_core.methods.zero_shot.estimator:ZeroShot",
    n_members=lambda settings: 1,
    nouns=lambda n_clusters: NounSelection(),
)
