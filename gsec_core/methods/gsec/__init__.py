"""GSEC, the method that this package is named after."""

from typing import Literal

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS


class GSECSettings(Section):
    """Parameters of the estimator `gsec_core.GSEC`."""

    preset: Literal["default", "published"] = Field("default", description="`published`: the features, counterparts and training of the paper's code.")
    ensemble_size: int = Field(32, ge=1, le=1024, description="BatchEnsemble members of each inner head.")
    max_steps: int | None = Field(None, ge=1, le=1_000_000, description="Outer steps. Default: the preset's.")
    tol: float | None = Field(
        None, ge=0, lt=1, description="Stop a member when at most this share of labels changed over its last 10 steps. 0: never. Default: the preset's."
    )


METHOD = Method(
    name="gsec",
    title="GSEC",
    paper="https://arxiv.org/abs/2605.12961",
    does="Linear members, each from its own k-means, that learn labels which BatchEnsemble heads can predict and neighbours agree on.",
    texts=(CAPTIONS, NOUNS, ENCODER, NONE),
    Settings=GSECSettings,
    estimator="gsec_core.methods.gsec.estimator:GSEC",
    as_published=lambda settings: settings.preset == "published",
    prepared_by=("preset",),
)
