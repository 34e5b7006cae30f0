"""Counterparts of images: what stands for a description of each. Where they come from is the setting `text.source`."""

from dataclasses import dataclass

CAPTIONS, NOUNS, ENCODER, NONE = "captions", "nouns", "encoder", "none"
"""Descriptions of a few images; nouns of a vocabulary; no text, but the images by a second encoder; nothing at all."""


@dataclass(frozen=True)
class NounSelection:
    """Which nouns of a vocabulary stand for the images, and how; see `text.nouns`."""

    images_per_centre: int | None = None
    """The images are cut into parts of so many; None: into as many parts as clusters. Each has a semantic centre."""
    per_centre: int | None = None
    """Nouns that are kept of each part; None: the nouns are the centres, and all are kept."""
    nearest: bool = False
    """Whether they are those nearest to the centre, or else those nearer to it than to the other centres."""
    unlike: float = 0.0
    """How far, as 1 - cosine, a noun must be from the mean noun."""
    tau: float | None = None
    """An image's counterpart is the mean of kept nouns by softmax(cosine / tau); None: it is the image itself, in the space of the nouns."""
    in_counterpart: int | None = None
    """Of so many nouns, the nearest to the image; None: of all."""


TAU = 0.005

DISTINCT = NounSelection(images_per_centre=300, per_centre=5, tau=TAU)
"""TAC's (Li et al. 2024, https://arxiv.org/abs/2310.11989)."""
