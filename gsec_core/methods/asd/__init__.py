"""ASD: a sample labels itself, and a semi-supervised learner takes its labels for true."""

from pydantic import Field

from gsec_core.methods.method import Method
from gsec_core.section import Section
from gsec_core.text import CAPTIONS, ENCODER, NONE, NOUNS


class ASDSettings(Section):
    """Parameters of the estimator `gsec_core.ASD`."""

    max_steps: int = Field(1600, ge=1, le=1_000_000, description="Steps of a member: three eighths of the instance classifier, the others of FixMatch.")


METHOD = Method(
    name="asd",
    title="ASD",
    paper="https://arxiv.org/abs/2509.20976",
    does="Sampled images, a class each; classes that images change between are one cluster, and FixMatch learns the clusters from the sample.",
    texts=(NONE, NOUNS, CAPTIONS, ENCODER),
    Settings=ASDSettings,
    estimator="gsec_core.methods.asd.estimator:ASD",
)
