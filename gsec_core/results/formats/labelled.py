"""The content that all formats share: the images of a run, each with a class, and the classes."""

from collections import Counter
from dataclasses import dataclass

import polars as pl

from gsec_core.results.frames import Frames

FACTS = ("confidence", "margin", "agreement", "outlier", "is_duplicate")
"""Columns about an image besides its cluster; see `tables.ASSIGNMENTS`."""


@dataclass(frozen=True)
class Labelled:
    """A run's result without hidden images and clusters.

    Attributes
    ----------
    images : frame
        `Frames.shown`, with ``label`` (the row of the cluster in ``classes``) and ``class_name``.
    classes : frame
        One row for each cluster that is not hidden: ``cluster_key``, ``name``, ``description``, and ``class_name``, which is unique.
    """

    frames: Frames
    images: pl.DataFrame
    classes: pl.DataFrame

    @classmethod
    def of(cls, frames: Frames) -> "Labelled":
        """Build it from the frames of a run. Raises as `Frames` does."""
        classes = frames.shown_clusters.select("cluster_key", "name", "description")
        class_names = _distinct(classes["name"].to_list(), classes["cluster_key"].to_list())
        classes = classes.with_columns(class_name=pl.Series(class_names, dtype=pl.String))
        labels = classes.select("cluster_key", "class_name").with_row_index("label").with_columns(pl.col("label").cast(pl.Int64))
        return cls(frames, frames.shown.join(labels, on="cluster_key", how="left", maintain_order="left"), classes)

    @property
    def about(self) -> str:
        """One sentence about the run."""
        return f"{len(self.images):,} images in {len(self.classes):,} clusters, by gsec, run {self.frames.context.run.id}."


def _distinct(names: list[str], keys: list[int]) -> list[str]:
    """The names, with the cluster's key where several are equal: people may give a name twice, or one that the model gave another cluster."""
    while len(counts := Counter(names)) < len(names):  # `cat (2)` may be a name too
        names = [name if counts[name] == 1 else f"{name} ({key})" for name, key in zip(names, keys, strict=True)]
    return names
