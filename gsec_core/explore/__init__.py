"""Explore a finished run: its clusters, images, neighbours and duplicates, and search by words or by an image. Independent of any web server."""

from gsec_core.explore.collection import MOST_ROWS, SORTS, Collection, act_row
from gsec_core.explore.rows import ActRow, Acts, ClusterRow, Duplicate, DuplicateGroup, Group, Groups, ImageDetail, ImageRow, Page, Past, Tree

__all__ = [
    "MOST_ROWS",
    "SORTS",
    "ActRow",
    "Acts",
    "ClusterRow",
    "Collection",
    "Duplicate",
    "DuplicateGroup",
    "Group",
    "Groups",
    "ImageDetail",
    "ImageRow",
    "Page",
    "Past",
    "Tree",
    "act_row",
]
