"""Image bytes: decoding them as an image viewer would, refusing what cannot be used, hashing, thumbnails."""

import io
import warnings

import numpy as np
import xxhash
from PIL import Image, ImageOps, UnidentifiedImageError

from gsec_core.sources.base import RejectedImage

MAX_PIXELS = 178_956_970
"""Larger images are rejected by their header. It is Pillow's own limit against decompression bombs."""

MAX_BYTES = 2**31
"""Larger files are rejected by their listed size, as reading one would fill the memory: no image below the limit of pixels needs as much."""

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened, by Pillow's names. Its other readers stay shut: rarely fed, and EPS would start Ghostscript on foreign bytes."""

_TOO_LARGE = f"larger than {MAX_PIXELS // 1_000_000} megapixels"

# Pillow warns of images over half its limit and of odd metadata, which nobody can act on. Set once, because
# `warnings.catch_warnings` is not safe in the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes) -> Image.Image:
    """The first frame as 8-bit RGB, upright (EXIF orientation applied), transparency on white, without metadata.

    Raises RejectedImage with a reason for bytes that can never be used.
    """
    if not data:
        raise RejectedImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise RejectedImage(_TOO_LARGE)
            return _as_shown(image)
    except (RejectedImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise RejectedImage(_TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise RejectedImage("not an image in a known format, or one with a damaged header") from error
    except Exception as error:
        # Pillow raises nearly anything on malformed data: OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, zlib.error...
        # Only Pillow runs in this block, so whatever it is, it is about these bytes.
        raise RejectedImage("truncated or damaged, or a variant that cannot be decoded") from error


def content_hash(data: bytes) -> bytes:
    """xxh3-128 of the file's bytes, 16 bytes: equal for duplicates, whatever their names."""
    return xxhash.xxh3_128_digest(data)


def thumbnail(image: Image.Image, size: int) -> bytes:
    """A JPEG of at most ``size`` pixels on the longest side, never enlarged. Equal pixels give equal bytes."""
    scale = min(1.0, size / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def limit_ratio(image: Image.Image, most: int = 8) -> Image.Image:
    """The middle of an image whose longest side is over ``most`` times its shortest, cropped to that ratio; others as they are.

    For use before a resize of the shortest side and a centre crop: these look at the middle only, but would first blow
    a 1 x 30,000 image up to gigabytes.
    """
    width, height = (min(side, most * min(image.size)) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def padded(image: Image.Image, most: int) -> Image.Image:
    """An image whose longest side is over ``most`` times its shortest, with white beside it up to that ratio; others as they are."""
    width, height = (max(side, -(-max(image.size) // most)) for side in image.size)
    return image if (width, height) == image.size else ImageOps.pad(image, (width, height), color="white")


def _as_shown(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        shown = Image.new("RGB", layer.size, "white")
        shown.paste(layer, mask=layer)
    else:
        shown = image.convert("RGB")
    shown.info = {}  # Pillow would write a photo's comment into its thumbnail.
    return shown


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits by its full range; 32-bit integers and floats, which have no agreed white, by their own."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    black, white = float(values.min()), float(values.max())
    if image.mode == "I" and black >= 0 and white <= 65535:  # Pillow's mode for 16-bit PGM
        black, white = 0.0, 65535.0
    return Image.fromarray(((values - black) * (255 / ((white - black) or 1.0))).astype(np.uint8))
