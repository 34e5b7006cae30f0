"""Decode image bytes as an image viewer would, reject unusable ones, hash them, and make thumbnails."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import xxhash
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from gsec_core.devices import return_freed_memory
from gsec_core.images import jpeg
from gsec_core.images.pixels import shown_pixels
from gsec_core.images.room import Room
from gsec_core.sources.base import RejectedImage

MAX_PIXELS = 178_956_970
"""Images with more pixels are rejected by their header. This is Pillow's own limit against decompression bombs."""

MAX_BYTES = 2**31
"""Larger files are rejected by their listed size, because reading one would fill the memory. No image within the limit of pixels needs as many bytes."""

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened, by Pillow's names. Its other readers are not used: they are rarely needed, and EPS would run Ghostscript on untrusted bytes."""

_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
"""Brands of HEIF files whose pictures are coded as HEVC. AVIF, which is opened, has other brands."""

NO_END = "the end marker is missing, all pixels are there"
NO_PROFILE = "the colour profile is damaged or of another colour space, and was ignored"

_TOO_LARGE = f"larger than {MAX_PIXELS // 1_000_000} megapixels"

_ROOM = Room(768 * 2**20)
"""Memory that all images being decoded in this process may take together, whatever the number of threads."""

_LARGE = 64 * 2**20
"""After an image that needs this many bytes, freed memory is returned to the system. Otherwise every thread keeps as much as its largest image took."""

# Pillow warns of images over half its limit and of odd metadata, which nobody can act on. The filter is set once, because
# `warnings.catch_warnings` is not safe in the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")

PngImagePlugin.MAX_TEXT_CHUNK = 2**24  # Colour profiles count as text, and those of printers exceed Pillow's limit of one megabyte.


class Picture(NamedTuple):
    """A decoded image."""

    image: Image.Image
    """8-bit sRGB, upright; smaller than in the file if a smaller size is enough."""
    size: tuple[int, int]
    """Width and height of the image in the file, upright."""
    note: str | None
    """A harmless fault of the file, or None."""


def decode(data: bytes, enough: int | None = None) -> Image.Image:
    """Decode an image as `opened` does. Raises RejectedImage as it does."""
    with opened(data, enough) as picture:
        return picture.image


@contextmanager
def opened(data: bytes, enough: int | None = None) -> Iterator[Picture]:
    """Context manager with the first frame as 8-bit sRGB, upright (EXIF orientation applied), transparency on white, without metadata.

    An embedded colour profile is applied. If the shorter side has at least twice ``enough`` pixels, the image may be reduced, to no fewer
    than ``enough``. Waits until other images leave enough memory, and holds that memory until the block ends.
    Raises RejectedImage with a reason for bytes that can never be used.
    """
    if not data:
        raise RejectedImage("empty file")
    with _rejecting(data):
        needed = _needed(data, enough)
    try:
        with _ROOM.taken(needed):
            with _rejecting(data):
                picture = _picture(data, enough)
            yield picture
    finally:
        if needed >= _LARGE:
            return_freed_memory()


@contextmanager
def _rejecting(data: bytes) -> Iterator[None]:
    try:
        yield
    except (RejectedImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise RejectedImage(_TOO_LARGE) from error
    except Exception as error:
        if known := _format_not_opened(data):
            raise RejectedImage(f"a {known} image, which gsec cannot open: convert it, for example to JPEG") from error
        if isinstance(error, UnidentifiedImageError):
            raise RejectedImage("not an image in a known format, or one with a damaged header") from error
        # Pillow raises nearly anything on malformed data: OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, zlib.error...
        # Only Pillow runs in these blocks, so any error is caused by these bytes.
        raise RejectedImage("truncated or damaged, or a variant that cannot be decoded") from error


def _format_not_opened(data: bytes) -> str | None:
    """Name of a common format that is not opened, if these bytes begin like it."""
    brands = data[8 : min(64, int.from_bytes(data[:4], "big"))] if data[4:8] == b"ftyp" else b""
    if any(brands[at : at + 4] in _HEIF for at in range(0, len(brands), 4)):
        return "HEIC"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "JPEG XL"
    return None


def content_hash(data: bytes) -> bytes:
    """xxh3-128 of the file's bytes (16 bytes): equal for files with the same content, whatever their names."""
    return xxhash.xxh3_128_digest(data)


def thumbnail(image: Image.Image, size: int) -> bytes:
    """Make a JPEG of at most ``size`` pixels on the longest side, never enlarged. Equal pixels give equal bytes."""
    scale = min(1.0, size / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def limit_ratio(image: Image.Image, most: int = 8) -> Image.Image:
    """Crop an image whose longest side is more than ``most`` times its shortest to that ratio, around its middle; return others unchanged.

    For use before a resize of the shortest side and a centre crop: these use only the middle, but would first enlarge
    a 1 x 30,000 image to gigabytes.
    """
    width, height = (min(side, most * min(image.size)) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def padded(image: Image.Image, most: int) -> Image.Image:
    """Pad an image whose longest side is more than ``most`` times its shortest with white to that ratio; return others unchanged."""
    width, height = (max(side, -(-max(image.size) // most)) for side in image.size)
    return image if (width, height) == image.size else ImageOps.pad(image, (width, height), color="white")


def _open(data: bytes) -> Any:
    """Open an image with Pillow, which reads the header. The type is Any, because callers use attributes of single formats."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _needed(data: bytes, enough: int | None) -> int:
    """Estimate from the header how many bytes of memory it takes to decode an image."""
    try:
        image = _open(data)
    except (SyntaxError, ValueError, OSError):
        if (without := _without_profile(data)) == data:
            raise
        image = _open(without)
    with image:
        pixels: int = image.width * image.height
        if pixels > MAX_PIXELS:
            raise RejectedImage(_TOO_LARGE)
        shown: int = 8 * pixels // _factor(image.size, enough) ** 2
        if image.format in ("JPEG", "MPO"):
            whole = 4 * pixels
            if jpeg.has_end(data):
                image.draft(None, (enough, enough) if enough else None)
                whole = 4 * image.width * image.height
            return int(whole + shown + jpeg.buffered(image, pixels))
        if image.format in ("AVIF", "JPEG2000", "WEBP"):
            return 16 * pixels + shown  # their libraries hold the whole image in their own form, besides Pillow's copy
        return (8 if image.format == "TIFF" else 4) * pixels + shown


def _factor(size: tuple[int, int], enough: int | None) -> int:
    return max(1, min(size) // enough) if enough else 1


def _picture(data: bytes, enough: int | None) -> Picture:
    if data.startswith(b"\xff\xd8") and not jpeg.has_end(data):
        return _read(jpeg.completed(data), enough, NO_END)
    try:
        return _read(data, enough, None)
    except (SyntaxError, ValueError, OSError):
        if (without := _without_profile(data)) == data:
            raise
        return _read(without, enough, NO_PROFILE)


def _read(data: bytes, enough: int | None, note: str | None) -> Picture:
    with _open(data) as image:
        size = image.size
        raw = image.tile[0].args if image.tile else None
        if enough and image.format in ("JPEG", "MPO"):
            image.draft(None, (enough, enough))
        drafted = image.size
        image.load()
        if image.size != drafted:  # Pillow itself rotates a TIFF
            size = image.size
        shown, profile_used = shown_pixels(image, data, raw, _factor(image.size, enough))
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation:
        shown.getexif()[ExifTags.Base.Orientation] = orientation
    shown = ImageOps.exif_transpose(shown)
    shown.info = {}  # Pillow would write the remaining metadata into the thumbnail.
    notes = [text for text in (note, None if profile_used else NO_PROFILE) if text]
    return Picture(shown, size[::-1] if orientation in (5, 6, 7, 8) else size, "; ".join(notes) or None)


def _without_profile(data: bytes) -> bytes:
    """Remove the colour profile from a PNG, because a damaged one can keep Pillow from reading the file. Other bytes are returned unchanged."""
    at = data.find(b"iCCP", 8, 4096)
    if not data.startswith(b"\x89PNG") or at < 0:
        return data
    return data[: at - 4] + data[at + 8 + int.from_bytes(data[at - 4 : at], "big") :]
