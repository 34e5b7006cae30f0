"""Export a run's result in formats that other libraries load directly.

In all formats the keys and names of clusters are as people have curated them, and hidden images and clusters are left out.
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
    """Returns the Python expression or the command that loads what was written into a folder."""
    has_images: bool
    """Whether the written files contain the images, so that no links or copies are needed."""


_FORMATS: dict[Format, _Format] = {
    "huggingface": _Format(huggingface.write, huggingface.load, True),
    "fiftyone": _Format(fiftyone.write, fiftyone.load, False),
    "coco": _Format(coco.write, coco.load, False),
    "embedding-atlas": _Format(atlas.write, atlas.load, True),
}


def write(context: Context, to: Path, format: Format, images: Images | None = None) -> dict[str, int]:
    """Write a run's result into the folder ``to`` in one of the formats. Returns the written files and folders with the number of rows or images of each.

    Existing files are replaced atomically; folders appear when they are complete, and are not replaced. For ``fiftyone`` and ``coco``, ``images`` places
    links to the images, or copies, beside the files; without it, the files refer to the images in the source. `LOST` counts images that are left out
    because the source no longer has them as they were clustered. Raises Refused if the run is not finished, if a folder exists already, or if the images
    are not files that can be referred to or linked; OSError if the disk is full.
    """
    if images is not None and _FORMATS[format].has_images:
        raise Refused(f"--images {images}: --format {format} contains the images already. Leave out one of the two.")
    return _FORMATS[format].write(Labelled.of(Frames(context)), to, images)


def load(format: Format, to: Path, written: Mapping[str, int]) -> str:
    """The Python expression or the command that loads what `write` has written."""
    return _FORMATS[format].load(to, written)
