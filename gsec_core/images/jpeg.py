"""JPEG files without an end marker: find out whether all pixels are there."""

import io
import re
from collections.abc import Iterator
from typing import Any

import xxhash
from PIL import Image

_END = b"\xff\xd9"
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""Matches a marker that ends coded data: not a stuffed FF, and not a restart marker."""
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}


def has_end(data: bytes) -> bool:
    """Whether an end marker follows the image's segments, or, in damaged data, at least follows the last scan marker."""
    return any(marker == 0xD9 for marker, _ in _segments(data)) or data.rfind(_END) > data.rfind(_SCAN)


def buffered(image: Any, pixels: int) -> float:
    """Bytes of coefficients that the decoder keeps for a JPEG image opened by Pillow, at any scale: 0 unless it is progressive."""
    if not image.info.get("progressive") or not image.layer:
        return 0
    blocks = [across * down for _, across, down, _ in image.layer]
    most = max(across for _, across, _, _ in image.layer) * max(down for _, _, down, _ in image.layer)
    return float(2 * pixels * sum(blocks) / most)


def completed(data: bytes) -> bytes:
    """Add the end marker to a JPEG that lacks it. Raises OSError if pixels are missing too.

    Pillow decodes whatever bytes are left, and libjpeg invents missing pixels. So the file is decoded with several endings,
    some of which continue with other data: if the pixels are the same each time, none of them depends on missing data.
    In a progressive file all scans must be there, because any scan can be missing without effect on this comparison.
    """
    body = data.rstrip(b"\0\xff")  # bytes that a disk or a download leaves where nothing was written
    if data[len(body) : len(body) + 1] == b"\xff":
        body += b"\xff\0"  # a coded byte or half a marker, neither of which matters after the last pixel
    restarts = _RESTART.findall(body, body.rfind(_SCAN))
    restart = bytes([0xFF, 0xD0 + (restarts[-1][0] - 0xD0 + 1) % 8 if restarts else 0xD0])
    others = (before + filler * 64 for filler in (b"\x55", b"\xaa") for before in (b"", restart))
    if _has_all_scans(body):
        pixels = _digest(body + _END)
        if all(_digest(body + other + _END) == pixels for other in others):
            return body + _END
    raise OSError("pixels are missing")


def _digest(data: bytes) -> bytes:
    digest = xxhash.xxh3_128()
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.load()
        rows = max(1, 2**22 // image.width)
        for top in range(0, image.height, rows):
            digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.digest()


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each marker that starts a segment, with the segment's body, up to an end marker or to the end of the data."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        length = int.from_bytes(data[at : at + 2], "big")
        yield marker, data[at + 2 : at + length]
        if marker == 0xD9:
            return
        at += length


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans contain each coefficient of each component with its full precision."""
    missing: set[tuple[int, int]] | None = None
    progressive = False
    for marker, body in _segments(data):
        if marker in _FRAMES:
            progressive = marker in _PROGRESSIVE
            missing = {(component, k) for component in body[6::3] for k in range(64)}
        elif marker == 0xDA and missing and len(body) == 4 + 2 * body[0]:
            first, last, bits = body[-3:] if progressive else (0, 63, 0)
            if bits & 15 == 0:
                missing -= {(component, k) for component in body[1:-3:2] for k in range(first, last + 1)}
    return missing is not None and not missing
