"""Text counterparts of images: what stands for a description of each. Where they come from is the setting `text.source`."""

CAPTIONS, NOUNS, NONE = "captions", "nouns", "none"
"""Descriptions of a few images; nouns of a vocabulary; no text at all."""
