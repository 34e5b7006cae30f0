"""Image files for formats that refer to them by path: in the source, or as links or copies beside the written files."""

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from gsec_core.errors import Refused
from gsec_core.results.files import make_folder
from gsec_core.results.formats.labelled import Labelled
from gsec_core.results.images import IMAGES, Images, open_for, place_images
from gsec_core.sources.folder import LocalFolder, RemoteFolder
from gsec_core.sources.uris import inside, key


def place(labelled: Labelled, to: Path, images: Images | None, format: str, absolute: bool) -> tuple[pl.DataFrame, Callable[[str], str]]:
    """The images that still exist, in the order of their URIs, with a column ``place``, and a function that converts a place to a path.

    Paths are relative to ``to`` if ``images`` are placed there. Otherwise they are relative to the source, or ``absolute``, which requires a
    local folder. Makes the folder ``to``. Raises Refused if the images are not files, or not local files where absolute paths are required.
    """
    context, shown = labelled.frames.context, labelled.images.sort("uri")
    source = open_for(context, images, to)
    if source is not None:
        make_folder(to)
        named = shown if labelled.frames.curation is None else shown.with_columns(cluster="cluster_key")
        placed = place_images(context, source, named, to / IMAGES, images == "links").rename({"path": "place"})
        return shown.join(placed, on="image_id", maintain_order="left"), str
    source = context.open_source()
    if not isinstance(source, LocalFolder | RemoteFolder):
        raise Refused(f"--format {format}: the images of {context.config.source} are not separate files. Add --images copies.")
    if absolute and not isinstance(source, LocalFolder):
        raise Refused(f"--format {format}: the images of {context.config.source} are not files on this machine. Add --images copies.")
    source.check()
    make_folder(to)
    found = shown.with_columns(place="uri")
    if isinstance(source, LocalFolder):
        there = [os.path.exists(os.path.join(source.url, inside(uri))) for uri in found["place"]]
        found = found.filter(pl.Series(there, dtype=pl.Boolean))
    return found, (lambda uri: os.path.join(source.url, inside(uri))) if absolute else key
