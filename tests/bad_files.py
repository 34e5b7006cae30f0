"""Writes one file of every bad kind and of every odd but valid kind, with the outcome that gsec must give it."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .pictures import picture


class Outcome(NamedTuple):
    """The status and the reason that ingest must record for a file."""

    status: str
    reason: str | None = None


OK = Outcome("ok")
NO_END = Outcome("ok", "the end marker is missing, all pixels are there")
NO_PROFILE = Outcome("ok", "the colour profile is damaged or of another colour space, and was ignored")
NO_IMAGE = Outcome("rejected", "not an image in a known format, or one with a damaged header")
HEIC = Outcome("rejected", "a HEIC image, which gsec cannot open: convert it, for example to JPEG")
DAMAGED = Outcome("rejected", "truncated or damaged, or a variant that cannot be decoded")
TOO_LARGE = Outcome("rejected", "larger than 178 megapixels")


def write_bad_files(folder: Path) -> dict[str, Outcome]:
    """Write one file of every bad kind into ``folder``; one is a link to a file outside the folder. Returns URI -> outcome."""
    data: dict[str, tuple[bytes, Outcome]] = {
        "empty.jpg": (b"", Outcome("rejected", "empty file")),
        "text.jpg": (b"This is a text that somebody named text.jpg.\n", NO_IMAGE),
        "page.png": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NO_IMAGE),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>', NO_IMAGE),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", NO_IMAGE),
        "document.png": (encoded(photo(), "PDF"), NO_IMAGE),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), HEIC),
        "truncated.jpg": (halved(encoded(photo(), "JPEG")), DAMAGED),
        "truncated and filled.jpg": (halved(encoded(photo(), "JPEG")) + bytes(9000), DAMAGED),
        "truncated progressive.jpg": (halved(encoded(photo(), "JPEG", progressive=True)), DAMAGED),
        "truncated.png": (halved(encoded(photo(), "PNG")), DAMAGED),
        "truncated.webp": (halved(encoded(photo(), "WEBP")), DAMAGED),
        "overwritten.png": (overwritten(encoded(photo(), "PNG")), DAMAGED),
        "no-pixels.png": (png(0, 10), NO_IMAGE),
        "no-pixels.bmp": (without_width(encoded(photo(), "BMP")), NO_IMAGE),
        "claims-too-much.png": (png(100_000, 100_000), TOO_LARGE),
        "bomb.png": (bomb(), TOO_LARGE),
    }
    for name, (content, _) in data.items():
        (folder / name).write_bytes(content)
    beside = folder.parent / f"beside-{folder.name}"
    beside.mkdir()
    photo().save(beside / "private.jpg")
    (folder / "leaves.jpg").symlink_to(f"../{beside.name}/private.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "dangling.jpg").symlink_to("gone.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "huge.jpg").open("wb") as huge:
        huge.truncate(2**40)  # a sparse file: a terabyte that takes no room on the disk
    photo().save(folder / "forbidden.jpg")
    (folder / "forbidden.jpg").chmod(0)
    return {name: outcome for name, (_, outcome) in data.items()} | {
        "leaves.jpg": Outcome("rejected", "a link that leaves the source folder"),
        "circle.jpg": Outcome("rejected", "a link that leads in a circle"),
        "dangling.jpg": Outcome("missing", "the file is gone"),
        "pipe.jpg": Outcome("rejected", "not a regular file"),
        "huge.jpg": Outcome("rejected", "larger than 2 gigabytes"),
        "forbidden.jpg": Outcome("missing", "permission denied"),
    }


def write_odd_files(folder: Path) -> dict[str, Outcome]:
    """Write one file of every rare but valid kind into ``folder``. Returns URI -> outcome, which is always ok, sometimes with a note."""
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [picture(seed) for seed in range(300, 303)]
    deep = Image.fromarray(np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64))
    plain = encoded(photo(), "JPEG")
    data = {
        "cmyk.jpg": encoded(photo().convert("CMYK"), "JPEG"),
        "sixteen-bit.png": encoded(deep, "PNG"),
        "sixteen-bit.tif": encoded(deep, "TIFF"),
        "palette.png": encoded(photo().quantize(16), "PNG", transparency=0),
        "bilevel.png": encoded(photo().convert("1"), "PNG"),
        "transparent.webp": encoded(photo().convert("RGBA"), "WEBP"),
        "turned.jpg": encoded(photo(), "JPEG", exif=turned),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "progressive.jpeg": encoded(photo(), "JPEG", progressive=True),
        "no end marker.jpg": encoded(photo(), "JPEG")[:-2],
        "no end marker, progressive.jpg": encoded(photo(), "JPEG", progressive=True)[:-2],
        "broken profile.jpg": encoded(photo(), "JPEG", icc_profile=b"no profile" * 20),
        "icon.ico": encoded(photo(), "ICO"),
        "film.jp2": encoded(photo(), "JPEG2000"),
        "tall.png": encoded(photo().resize((1, 30_000)), "PNG"),
        "wide.png": encoded(photo().resize((30_000, 1)), "PNG"),
        "one-pixel.png": encoded(photo().resize((1, 1)), "PNG"),
        "a-png-named.jpg": encoded(photo(), "PNG"),
        "overwritten.jpg": overwritten(plain),  # a JPEG has no checksums: viewers show a garbled part, and so does gsec
        "twin.jpg": plain,
        "twin again.jpg": plain,
        "SHOUTING.JPG": plain + b"\n",
        "-leading-dash.jpg": plain + b"-",
        "quotes ' and \".jpg": plain + b"'",
        "line\nbreak.jpg": plain + b"\n\n",
        "=1+1.jpg": plain + b"=",
        "50%#1.jpg": plain + b"%",
        "\u202eright to left \u0635\u0648\u0631\u0629.jpg": plain + b"rtl",
        os.fsdecode(b"not utf-8 \xe9\xff.jpg"): plain + b"\xe9",
        "x.jpg/a folder may have such a name.jpg": plain + b"folder",
    }
    for name, content in data.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link.jpg").symlink_to("twin.jpg")
    uris = {name: name for name in data} | {"50%#1.jpg": "50%25%231.jpg", os.fsdecode(b"not utf-8 \xe9\xff.jpg"): "not utf-8 %E9%FF.jpg"}
    noted = {"no end marker.jpg": NO_END, "no end marker, progressive.jpg": NO_END, "broken profile.jpg": NO_PROFILE}
    return dict.fromkeys([*uris.values(), "link.jpg"], OK) | noted


TWINS = {"twin.jpg", "twin again.jpg", "link.jpg"}
"""The files of `write_odd_files` that have the same bytes."""


def photo() -> Image.Image:
    """A picture with noise, which compresses badly, so that half of its file holds half of the picture."""
    noise = np.random.default_rng(0).integers(0, 60, (48, 64, 3)).astype(np.uint8)
    return Image.fromarray(np.asarray(picture(300)) // 2 + noise)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def overwritten(data: bytes) -> bytes:
    """``data`` with other bytes in its middle, as a bad disk leaves it."""
    middle = len(data) // 2
    return data[:middle] + b"\x55" * 64 + data[middle + 64 :]


def without_width(bmp: bytes) -> bytes:
    return bmp[:18] + bytes(4) + bmp[22:]


def png(width: int, height: int, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG whose header claims this width and height, whatever pixels it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A decompression bomb: 25 kilobytes that hold a bilevel image of 200 megapixels, which is 600 megabytes in RGB."""
    width, height = 20_000, 10_000
    return png(width, height, depth=1, colour=0, pixels=bytes((1 + width // 8) * height))
