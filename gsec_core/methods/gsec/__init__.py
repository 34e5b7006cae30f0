"""GSEC, the method that this package is named after."""

from typing import Literal

from pydantic import Field

from gsec_core.clustering.kmeans import MANY_CLUSTERS
from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS

N_MEMBERS = {"default": 20, "published": 1}
"""Outer members of each preset."""


class GSECSettings(Section):
    """Parameters of the estimator `gsec_core.GSEC`."""

    preset: Literal["default", "published"] = Field(
        "default", description="`published`: features, text counterparts and training as in the paper's code; `default`: those of gsec."
    )
    ensemble_size: int = Field(32, ge=1, le=1024, description="Number of BatchEnsemble members in each inner head.")
    max_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="Outer steps of a member. Default: the preset's: 100, or fewer with many clusters; `published` 6,000."
    )
    tol: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="A member stops when at most this share of its labels changed over its last 10 steps. 0: it never stops early. Default: the preset's: 0; "
        "`published` .001.",
    )


METHOD = Method(
    name="gsec",
    title="GSEC",
    paper="https://arxiv.org/abs/2605.12961",
    does="Linear members, each from its own k-means, learn labels that BatchEnsemble heads can predict and neighbours agree on.",
    texts=(CAPTIONS, NOUNS, ENCODER, NONE),
    Settings=GSECSettings,
    estimator="gsec_core.methods.gsec.estimator:GSEC",
    n_members=lambda settings: N_MEMBERS[settings.preset],
    revision=lambda settings, n_clusters: 2 if settings.preset == "default" and n_clusters > MANY_CLUSTERS else 1,  # the training became shorter
    as_published=lambda settings: settings.preset == "published",
    prepared_by=("preset",),
)
