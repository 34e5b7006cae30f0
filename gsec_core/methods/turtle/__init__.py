"""TURTLE: the labelling that linear classifiers learn most easily."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS

N_MEMBERS = 4
"""Few, since each member takes minutes."""


class TURTLESettings(Section):
    """Parameters of the estimator `gsec_core.TURTLE`."""

    max_steps: int = Field(6000, ge=1, le=1_000_000, description="Outer steps of a member.")
    gamma: float = Field(10.0, ge=0, le=1000, description="Weight of the entropy of the cluster sizes. A larger weight makes the sizes more equal.")


METHOD = Method(
    name="turtle",
    title="TURTLE",
    paper="https://arxiv.org/abs/2406.07236",
    does="Finds the labels that linear classifiers learn most easily, in one space or two. Favours clusters of equal size.",
    texts=(NONE, NOUNS, CAPTIONS, ENCODER),
    Settings=TURTLESettings,
    estimator="gsec_core.methods.turtle.estimator:TURTLE",
    n_members=lambda settings: N_MEMBERS,
)
