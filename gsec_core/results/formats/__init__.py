"""A run's result in the formats of other libraries, which load it by themselves.

In all of them keys and names of clusters are as people have curated them, and what people have hidden is left out.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from gsec_core.errors import Refused
from gsec_core.results.formats import atlas, coco, fiftyone, huggingface
from gsec_core.results.formats.labelled import Labelled
from gsec_core.results.frames import Frames
from gsec_core.results.images import Images
from gsec_core.stages.base import Context

Format = Literal["huggingface", "fiftyone", "coco", "embedding-atlas"]


class _Format(NamedTuple):
    write: Callable[[Labelled, Path, Images | None], dict[str, int]]
    load: Callable[[Path, Mapping[str, int]], str]
    """How a user loads what was written into a folder, in Python or by a command."""
    has_images: bool
    """Whether what is written holds the images, so that they need not be placed beside it."""


_FORMATS: dict[Format, _Format] = {
    "huggingface": _Format(huggingface.write, huggingface.load, True),
    "fiftyone": _Format(fiftyone.write, fiftyone.load, False),
    "coco": _Format(coco.write, coco.load, False),
    "embedding-atlas": _Format(atlas.write, atlas.load, True),
}


def write(context: Context, to: Path, format: Format, images: Images | None = None) -> dict[str, int]:
    """Write a run's result into the folder ``to`` in one of the formats. Returns the files and folders written, with the rows or images of each.

    Files that are there are replaced, each at once; folders appear when they are whole, and are not replaced. ``images`` places links to the images, or
    copies, beside the files of ``fiftyone`` and ``coco``, which otherwise name the images where they are. `LOST` counts images that are not written, as the
    source no longer has them as they were clustered. Raises Refused if the run is not finished, if a folder is there already, or if the images
    cannot be named or linked as files; OSError if the disk is full.
    """
    if images is not None and _FORMATS[format].has_images:
        raise Refused(f"--images {images}: what --format {format} writes holds the images itself. Leave one of both out.")
    return _FORMATS[format].write(Labelled.of(Frames(context)), to, images)


def load(format: Format, to: Path, written: Mapping[str, int]) -> str:
    """How a user loads what `write` has written, in Python or by a command."""
    return _FORMATS[format].load(to, written)
