"""Convert pixels of any mode, depth and colour space to 8-bit sRGB on white, as a viewer shows them."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin, TiffTags

_Strip = tuple[Image.Image, Image.Image | None]
"""Colours in L, RGB, CMYK or LAB, and their opacity; None if all pixels are opaque."""
_Box = tuple[int, int, int, int]

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
"""Mode of the colours -> colour space that a profile must have."""

_STRIP = 2**22
"""Pixels that are converted at once: converting the whole image at once would take too much memory."""

_GRID = Image.fromarray(np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), -1).reshape(18 * 18, 18, 3))
"""A grid of colours over the whole RGB cube."""

# Pillow reads deep greys if 0 is black, but refuses most of those where 0 is white. These are read in the same way, and inverted below.
for _form, _how in list(TiffImagePlugin.OPEN_INFO.items()):
    _order, _photometric, _sample, _fill, _bits, _extra = _form
    if _photometric == 1 and _bits in ((12,), (16,), (32,)):
        TiffImagePlugin.OPEN_INFO.setdefault((_order, 0, _sample, _fill, _bits, _extra), _how)

_TAGS = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}


def shown_pixels(image: Any, data: bytes, raw: Any, factor: int) -> tuple[Image.Image, bool]:
    """Convert a loaded Pillow image to RGB, with both sides divided by ``factor``.

    ``data`` are the file's bytes, ``raw`` is the raw mode of Pillow's tile before it was loaded. The second return value is False
    if there is a colour profile that could not be used.
    """
    split = _splitter(image, data, raw)
    mode = split((0, 0, 1, 1))[0].mode
    to_rgb, profile_used = _converter(image, mode)
    shown = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = max(1, _STRIP // (image.width * factor)) * factor
    for top in range(0, image.height, rows):
        colours, opacity = split((0, top, image.width, min(top + rows, image.height)))
        strip = to_rgb(colours)
        if opacity is not None:
            white = Image.new("RGB", strip.size, "white")
            white.paste(strip, mask=opacity)
            strip = white
        shown.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return shown, profile_used


def _converter(image: Any, mode: str) -> tuple[Callable[[Image.Image], Image.Image], bool]:
    """A function that converts colours of a mode to RGB, with the embedded profile if possible. The flag is False if a profile cannot be used."""
    plain = lambda colours: colours.convert("RGB")  # noqa: E731
    if "icc_profile" not in image.info:
        return plain, True
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"] or b""))
        if profile.profile.xcolor_space.strip() != _SPACES.get(mode):
            return plain, False
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return plain, False
    to_rgb = partial(_applied, transform)
    if mode == "RGB" and np.abs(np.asarray(to_rgb(_GRID)).astype(int) - np.asarray(_GRID)).max() <= 1:
        return plain, True  # most profiles are sRGB itself, under many names, and applying one takes as long as decoding
    return to_rgb, True


def _applied(transform: Any, colours: Image.Image) -> Image.Image:
    shown = Image.new("RGB", colours.size)
    transform.transform.apply(colours.getim(), shown.getim())
    return shown


def _splitter(image: Any, data: bytes, raw: Any) -> Callable[[_Box], _Strip]:
    """A function that splits a part of the image into colours and opacity."""
    key = image.info.get("transparency")
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _deep(image, key)
    if mode in ("1", "L"):
        if image.format == "PNG" and raw in ("L;2", "L;4") and isinstance(key, int):
            key *= 255 // (2 ** int(raw[-1]) - 1)  # as Pillow scales the pixels
        return partial(_grey, image, key)
    if mode == "RGB" and key is not None and raw == "RGB;16B":
        return _keyed_rgb_16(image, data, key)
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or image.has_transparency_data:
        if mode == "RGBA" and _is_padding(image, data):
            return _padded(image, data)
        return partial(_with_alpha, image, raw == "LA;16B")
    return partial(_opaque, image)


def _opaque(image: Any, box: _Box) -> _Strip:
    part = image.crop(box)
    return (part if part.mode in _SPACES else part.convert("RGB")), None


def _grey(image: Any, key: int | None, box: _Box) -> _Strip:
    part = image.crop(box).convert("L")
    return part, None if key is None else part.point([0 if value == key else 255 for value in range(256)])


def _with_alpha(image: Any, grey: bool, box: _Box) -> _Strip:
    part = image.crop(box)
    if part.mode in ("LA", "La") or grey:
        part = part.convert("LA") if part.mode == "La" else part
        return part.getchannel(0), part.getchannel("A")
    part = part.convert("RGBA")
    return part.convert("RGB"), part.getchannel("A")


def _deep(image: Any, key: int | None) -> Callable[[_Box], _Strip]:
    """Scale grey of more than 8 bits: up to 16 bits by the full range; 32-bit integers and floats, which have no standard white, by their own range."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    bits = tags.get(_TAGS["BitsPerSample"], (16,))[0]
    unsigned = image.mode == "I" and bits == 32 and tags.get(_TAGS["SampleFormat"], (1,))[0] == 1
    boxes = [(0, top, image.width, min(top + 256, image.height)) for top in range(0, image.height, 256)]

    def values(box: _Box) -> NDArray[Any]:
        found = np.asarray(image.crop(box))
        if unsigned and tags:
            found = found.view(np.uint32)  # Pillow treats them as signed
        return found

    def finite(box: _Box) -> NDArray[np.float64]:
        return np.nan_to_num(values(box).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)

    if image.mode.startswith("I;16"):
        black, white = 0.0, 2.0**bits - 1
    elif image.format == "PPM" and image.mode == "I":
        black, white = 0.0, 65535.0  # Pillow's mode for 16-bit PGM
    else:
        black = min(float(finite(box).min()) for box in boxes)
        white = max(float(finite(box).max()) for box in boxes)
    if tags.get(_TAGS["PhotometricInterpretation"]) == 0:
        black, white = white, black

    def split(box: _Box) -> _Strip:
        grey = (finite(box) - black) * (255 / ((white - black) or 1.0))
        part = Image.fromarray(np.rint(grey).astype(np.uint8))
        return part, None if key is None else _mask(values(box) != key)

    return split


def _keyed_rgb_16(image: Any, data: bytes, key: tuple[int, int, int]) -> Callable[[_Box], _Strip]:
    """Compare 16-bit RGB pixels with the transparent colour exactly: Pillow keeps only their upper 8 bits, so the lower ones are read too."""
    lower: Any = Image.open(io.BytesIO(data), formats=["PNG"])
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
    lower.load()

    def split(box: _Box) -> _Strip:
        part = image.crop(box)
        values = np.asarray(part).astype(np.uint16) << 8 | np.asarray(lower.crop(box))
        return part, _mask((values != np.array(key)).any(axis=2))

    return split


def _mask(opaque: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(opaque.astype(np.uint8) * 255)


def _is_padding(image: Any, data: bytes) -> bool:
    """Whether the channel that Pillow takes for alpha is only padding to 32 bits: it is 0 everywhere, and the format does not declare it as alpha."""
    if image.format == "TIFF":
        named = any(kind in (1, 2) for kind in image.tag_v2.get(_TAGS["ExtraSamples"], ()))
    elif image.format == "ICO":
        named = data[_entry(image).offset :].startswith(b"\x89PNG")
    else:
        named = image.format != "BMP"
    return not named and image.getextrema()[3] == (0, 0)


def _padded(image: Any, data: bytes) -> Callable[[_Box], _Strip]:
    mask = _icon_mask(image, data) if image.format == "ICO" else None

    def split(box: _Box) -> _Strip:
        return image.crop(box).convert("RGB"), None if mask is None else mask.crop(box)

    return split


def _entry(icon: Any) -> Any:
    return icon.ico.entry[icon.ico.getentryindex(icon.size)]


def _icon_mask(icon: Any, data: bytes) -> Image.Image | None:
    """Opacity of an icon without alpha, from the bit mask after its colours: rows from the bottom up, padded to 32 bits, 1 where transparent."""
    entry = _entry(icon)
    row = -(-icon.width // 32) * 4
    end = entry.offset + entry.size
    bits = data[end - row * icon.height : end]
    if len(bits) < row * icon.height or entry.size < 40 + (4 * icon.width + row) * icon.height:
        return None
    return Image.frombytes("1", icon.size, bits, "raw", "1;I", row, -1).convert("L")
