"""Thumbnails for a page, within a limit of bytes: single pictures for galleries, sheets of many for the map."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from gsec_core.images.decode import decode, thumbnail
from gsec_core.sources.base import RejectedImage

_SIDES = (96, 64, 48, 32)
_TILES = (96, 48, 32, 24)
"""Sides in pixels, tried in this order until all pictures fit."""

_COLUMNS = 16
_A_SHEET = _COLUMNS**2
"""Number of tiles per sheet; it is limited, since a browser decodes a whole sheet to draw one tile."""


@dataclass(frozen=True)
class Picture:
    """Data for an image element."""

    source: str
    """A data URI."""
    width: int
    height: int


@dataclass(frozen=True)
class Sheets:
    """Tiles of equal size, 16 per row and 256 per sheet, in the order of the thumbnails; each has its picture at the top left."""

    tile: int
    """Side of a tile in pixels; 0 if there is no sheet."""
    sources: tuple[str, ...]
    """A data URI for each sheet."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each picture; zeros where there is none."""


def gallery(thumbnails: Sequence[bytes | None], budget: int) -> list[Picture | None]:
    """A picture for each existing thumbnail, all of the largest size at which they take at most ``budget`` bytes.

    If even the smallest size takes more, the last ones get None.
    """
    made: list[Picture | None] = []
    for side in _SIDES:
        made, left = [], budget
        for data in thumbnails:
            picture = _picture(data, side)
            left -= len(picture.source) if picture else 0
            made.append(picture if left >= 0 else None)
        if left >= 0:
            break
    return made


def sheets(thumbnails: Sequence[bytes | None], budget: int) -> Sheets:
    """Sheets of all thumbnails with the largest tiles at which they take at most ``budget`` bytes; no sheets if even the smallest take more."""
    for tile in _TILES:
        sources: list[str] = []
        sizes: list[tuple[int, int]] = []
        for start in range(0, len(thumbnails), _A_SHEET):
            source, placed = _sheet([_decoded(data, tile) for data in thumbnails[start : start + _A_SHEET]], tile)
            sources.append(source)
            sizes += placed
            if sum(map(len, sources)) > budget:
                break
        else:
            if any(map(any, sizes)):
                return Sheets(tile, tuple(sources), tuple(sizes))
            break
    return Sheets(0, (), ((0, 0),) * len(thumbnails))


def _picture(data: bytes | None, side: int) -> Picture | None:
    """The thumbnail, reduced if it is larger than ``side``; None if there is none or it cannot be read."""
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            width, height = image.size
        if max(width, height) > side:
            data = thumbnail(decode(data), side)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except (RejectedImage, OSError):
        return None
    return Picture(_data_uri(data), width, height)


def _decoded(data: bytes | None, side: int) -> Image.Image | None:
    if data is None:
        return None
    try:
        image = decode(data)
    except RejectedImage:
        return None
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image


def _sheet(images: Sequence[Image.Image | None], tile: int) -> tuple[str, list[tuple[int, int]]]:
    sheet = Image.new("RGB", (tile * min(_COLUMNS, len(images)), tile * -(-len(images) // _COLUMNS)))
    for place, image in enumerate(images):
        if image:
            corner = tile * (place % _COLUMNS), tile * (place // _COLUMNS)
            # Fill the tile with the mean colour: a different background would show at the picture's edge.
            sheet.paste(image.resize((1, 1)).resize((tile, tile)), corner)
            sheet.paste(image, corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=75)
    return _data_uri(buffer.getvalue()), [image.size if image else (0, 0) for image in images]


def _data_uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
