"""Images of all modes, depths and kinds of transparency."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gsec_core.images.decode import decode

from ..bad_files import png
from .examples import CORNER, QUIET, WHITE, encoded, halves

pytestmark = QUIET


def png_of(rows: np.ndarray, depth: int, colour: int, transparent: bytes | None = None) -> bytes:
    """A PNG made of rows of packed bytes."""
    data = png(
        int(rows.shape[1] * 8 / depth / {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]), len(rows), depth, colour, b"".join(b"\0" + row.tobytes() for row in rows)
    )
    if transparent is None:
        return data
    at = data.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(transparent)) + b"tRNS" + transparent + struct.pack(">I", zlib.crc32(b"tRNS" + transparent))
    return data[:at] + chunk + data[at:]


@pytest.mark.parametrize(
    ("depth", "packed", "key", "right"),
    [
        (1, [0b01010101], 0, WHITE),  # the other pixels are white as well
        (1, [0b01010101], 1, (0, 0, 0)),
        (2, [0b01100110], 1, (170, 170, 170)),
        (4, [0x3A, 0x3A], 3, (170, 170, 170)),
        (8, [7, 100, 7, 100], 7, (100, 100, 100)),
        (16, [0, 0, 100, 0, 0, 0, 100, 0], 0, (100, 100, 100)),
        (16, [1, 2, 1, 3, 1, 2, 1, 3], 0x0102, (1, 1, 1)),
    ],
)
def test_the_transparent_value_of_grey_pngs_of_every_depth_becomes_white(depth: int, packed: list[int], key: int, right: tuple[int, int, int]) -> None:
    image = decode(png_of(np.array([packed] * 4, np.uint8), depth, 0, struct.pack(">H", key)))
    pixels = [image.getpixel((x, 1)) for x in range(2)]
    assert pixels == ([right, WHITE] if (depth, key) == (1, 1) else [WHITE, right])


@pytest.mark.parametrize("key", [(0x1234, 0x5678, 0x9ABC), (0, 0, 0)])
def test_only_the_transparent_colour_of_a_16_bit_png_becomes_white(key: tuple[int, int, int]) -> None:
    near = (key[0], key[1], key[2] + 1)
    row = np.array([*key, *near], ">u2").view(np.uint8)
    image = decode(png_of(np.stack([row] * 3), 16, 2, struct.pack(">3H", *key)))
    assert [image.getpixel((x, 1)) for x in range(2)] == [WHITE, tuple(value >> 8 for value in key)]


def test_grey_and_colours_of_16_bits_with_alpha_lie_on_white() -> None:
    grey = np.array([0, 0, 0x4000, 0xFFFF, 0, 0x8000], ">u2").view(np.uint8)
    image = decode(png_of(grey[None], 16, 4))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [255, 64, 127]
    colours = np.array([1, 2, 3, 0, 0xFFFF, 0x8000, 0, 0xFFFF], ">u2").view(np.uint8)
    image = decode(png_of(colours[None], 16, 6))
    assert [image.getpixel((x, 0)) for x in range(2)] == [WHITE, (255, 128, 0)]


def test_a_png_that_is_transparent_everywhere_is_white() -> None:
    for mode in ("RGBA", "LA"):
        assert decode(encoded(Image.new(mode, (8, 8)), "PNG")).getpixel((4, 4)) == WHITE


def tiff_of(pixels: bytes, size: tuple[int, int], bits: int, photometric: int, sample_format: int = 1, **more: object) -> bytes:
    """A little-endian TIFF of one strip with one sample per pixel, or ``samples``."""
    samples = more.get("samples", 1)
    extra = more.get("extra")
    entries = [(256, 4, 1, size[0]), (257, 4, 1, size[1]), (259, 3, 1, 1), (262, 3, 1, photometric), (277, 3, 1, samples), (278, 4, 1, size[1])]
    entries += [(279, 4, 1, len(pixels)), (339, 3, 1, sample_format)] + ([] if extra is None else [(338, 3, 1, extra)])
    count = len(entries) + 2
    after = 8 + 2 + 12 * count + 4
    depths = struct.pack(f"<{samples}H", *[bits] * samples)
    entries += [(258, 3, samples, bits if samples == 1 else after), (273, 4, 1, after + len(depths))]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + directory + bytes(4) + depths + pixels


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("kind", ["1", "4", "8", "16", "32", "float", "signed"])
def test_greys_of_a_tiff_are_not_inverted(photometric: int, kind: str) -> None:
    packed, bits, form = {
        "1": (bytes([0b00001111]), 1, 1),
        "4": (bytes([0x00, 0x55, 0xAA, 0xFF]), 4, 1),
        "8": (bytes([0, 0, 85, 85, 170, 170, 255, 255]), 8, 1),
        "16": (np.array([0, 0, 21845, 21845, 43690, 43690, 65535, 65535], "<u2").tobytes(), 16, 1),
        "32": ((np.array([0, 0, 1, 1, 2, 2, 3, 3], "<u4") * 0x55555555).astype("<u4").tobytes(), 32, 1),
        "float": (np.array([0, 0, 1, 1, 2, 2, 3, 3], "<f4").tobytes(), 32, 3),
        "signed": (np.array([-3, -3, -1, -1, 1, 1, 3, 3], "<i4").tobytes(), 32, 2),
    }[kind]
    grey = np.asarray(decode(tiff_of(packed, (8, 1), bits, photometric, form)))[0, ::2, 0]
    expected = [0, 0, 255, 255] if kind == "1" else [0, 85, 170, 255]
    np.testing.assert_allclose(grey, expected if photometric else 255 - np.array(expected), atol=1)


def test_greys_of_12_bits_are_scaled() -> None:
    values = [0, 1365, 2730, 4095]
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True))
    np.testing.assert_allclose(np.asarray(decode(tiff_of(packed, (4, 1), 12, 1)))[0, :, 0], [0, 85, 170, 255], atol=1)


def test_small_greys_of_32_bits_are_not_decoded_as_black() -> None:
    grey = np.asarray(decode(tiff_of(np.arange(0, 256, 51, dtype="<u4").tobytes(), (6, 1), 32, 1)))[0, :, 0]
    np.testing.assert_allclose(grey, range(0, 256, 51), atol=1)


@pytest.mark.parametrize(("maxval", "form"), [(255, ">u1"), (1023, ">u2"), (4095, ">u2"), (65535, ">u2")])
def test_a_pgm_is_scaled_by_its_own_largest_value(maxval: int, form: str) -> None:
    values = np.array([0, maxval // 3, maxval], form)
    np.testing.assert_allclose(np.asarray(decode(b"P5 3 1 %d\n" % maxval + values.tobytes()))[0, :, 0], [0, 85, 255], atol=1)


def test_jpeg_2000_of_16_bits_is_scaled() -> None:
    values = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 64, 0)
    grey = np.asarray(decode(encoded(Image.fromarray(values), "JPEG2000")))[..., 0]
    np.testing.assert_allclose(grey, values / 257, atol=1)


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_transparent_colours_of_a_palette_become_white(mode: str) -> None:
    if mode == "PA":
        data = encoded(halves("RGBA", (0, 0, 0, 0), (0, 0, 255, 255)), "TIFF", compression="tiff_lzw")
    else:
        palette = halves("P", 0, 1)
        palette.putpalette([9, 9, 9, 0, 0, 255])
        data = encoded(palette, "PNG", transparency=bytes([0, 255]))
    image = decode(data)
    assert (image.getpixel((8, 16)), image.getpixel((56, 16))) == (WHITE, (0, 0, 255))


# Alpha that is only padding


def bmp_32(alpha: int, masks: bool = True) -> bytes:
    """A BMP of 4 x 4 pixels in (220, 30, 30), with a version 4 header and a mask for alpha, or with plain 32-bit pixels."""
    pixels = bytes([30, 30, 220, alpha]) * 16
    size = 108 if masks else 40
    header = struct.pack("<IiiHHIIiiII", size, 4, 4, 1, 32, 3 if masks else 0, len(pixels), 0, 0, 0, 0)
    if masks:
        header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + size + len(pixels), 0, 0, 14 + size) + header + pixels


def ico_32(alpha: int, mask: bytes = bytes(4)) -> bytes:
    """An icon of 4 x 4 pixels in (220, 30, 30), stored as a bitmap and not as a PNG."""
    bitmap = struct.pack("<IiiHHIIiiII", 40, 4, 8, 1, 32, 0, 0, 0, 0, 0, 0) + bytes([30, 30, 220, alpha]) * 16 + mask * 4
    return struct.pack("<3H4B2H2I", 0, 1, 1, 4, 4, 0, 0, 1, 32, len(bitmap), 22) + bitmap


@pytest.mark.parametrize(
    "data",
    [
        bmp_32(0),
        bmp_32(255),
        bmp_32(0, masks=False),
        bmp_32(255, masks=False),
        ico_32(0),
        ico_32(255),
        tiff_of(bytes([220, 30, 30, 0]) * 16, (4, 4), 8, 2, samples=4),
        tiff_of(bytes([220, 30, 30, 0]) * 16, (4, 4), 8, 2, samples=4, extra=0),
    ],
)
def test_an_alpha_channel_that_is_only_padding_is_ignored(data: bytes) -> None:
    assert decode(data).getpixel((1, 1)) == CORNER


def test_a_real_alpha_channel_is_applied() -> None:
    half = (237, 142, 142)
    np.testing.assert_allclose(decode(bmp_32(128)).getpixel((1, 1)), half, atol=1)
    np.testing.assert_allclose(decode(ico_32(128)).getpixel((1, 1)), half, atol=1)
    assert decode(tiff_of(bytes([220, 30, 30, 0]) * 16, (4, 4), 8, 2, samples=4, extra=2)).getpixel((1, 1)) == WHITE
    assert decode(encoded(Image.new("RGBA", (16, 16)), "ICO")).getpixel((1, 1)) == WHITE  # a PNG inside


def test_the_mask_of_an_icon_without_alpha_is_applied() -> None:
    image = decode(ico_32(0, mask=bytes([0b11000000, 0, 0, 0])))
    assert [image.getpixel((x, 2)) for x in range(4)] == [WHITE, WHITE, CORNER, CORNER]
