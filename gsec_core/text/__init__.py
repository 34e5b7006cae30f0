"""Text counterparts of images, which take the place of a description of each image. The setting `text.source` says where they come from."""

from dataclasses import dataclass

CAPTIONS, NOUNS, ENCODER, NONE = "captions", "nouns", "encoder", "none"
"""Text sources: descriptions of a few images; nouns of a vocabulary; embeddings by a second encoder instead of text; none."""


@dataclass(frozen=True)
class NounSelection:
    """How nouns of a vocabulary are selected, and counterparts made from them; see `text.nouns`."""

    images_per_centre: int | None = None
    """Average number of images per part; each part has a semantic centre. None: as many parts as clusters."""
    per_centre: int | None = None
    """Number of nouns that are kept for each centre; None: the nouns themselves are the centres, and all are kept."""
    nearest: bool = False
    """Whether the nouns nearest to the centre are kept, or else those that are nearer to it than to the other centres."""
    unlike: float = 0.0
    """Least distance, as 1 - cosine, of a kept noun from the mean noun."""
    tau: float | None = None
    """An image's counterpart is the mean of kept nouns, weighted by softmax(cosine / tau); None: it is the image itself, in the space of the nouns."""
    in_counterpart: int | None = None
    """Number of nouns in a counterpart, the nearest to the image; None: all kept nouns."""


TAU = 0.005

DISTINCT = NounSelection(images_per_centre=300, per_centre=5, tau=TAU)
"""The selection of TAC (Li et al. 2024, https://arxiv.org/abs/2310.11989)."""
