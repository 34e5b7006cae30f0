"""Embedded colour profiles."""

import struct

import numpy as np
import pytest
from PIL import Image

from gsec_core.images.decode import NO_PROFILE, decode, opened

from ..profiles import ADOBE, P3, SRGB, SWAPPED, cmyk_profile, grey_profile, lab_profile, rgb_profile
from .examples import CORNER, QUIET, encoded

pytestmark = QUIET


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (rgb_profile(SWAPPED, None), (30, 220, 30)),
        (rgb_profile(ADOBE, 2.2), (255, 24, 24)),
        (rgb_profile(P3, None), (241, 0, 0)),
        (rgb_profile(SRGB, None), CORNER),
        (rgb_profile(SRGB, 1.0), (239, 97, 97)),
    ],
)
def test_an_embedded_profile_is_converted_to_srgb(form: str, profile: bytes, expected: tuple[int, int, int]) -> None:
    options = {"quality": 100} if form in ("JPEG", "WEBP", "AVIF") else {}
    with opened(encoded(Image.new("RGB", (32, 32), CORNER), form, icc_profile=profile, **options)) as picture:
        np.testing.assert_allclose(picture.image.getpixel((8, 8)), expected, atol=3)
        assert picture.note is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_a_grey_profile_is_applied_to_grey(form: str) -> None:
    image = Image.new("L", (32, 32), 128)
    np.testing.assert_allclose(decode(encoded(image, form, icc_profile=grey_profile(1.0))).getpixel((8, 8)), (188, 188, 188), atol=1)


@pytest.mark.parametrize("mode", ["LA", "I;16"])
def test_a_grey_profile_is_applied_to_grey_of_16_bits_and_with_alpha(mode: str) -> None:
    image = Image.new("I;16", (32, 32), 128 * 257) if mode == "I;16" else Image.new("LA", (32, 32), (128, 255))
    np.testing.assert_allclose(decode(encoded(image, "PNG", icc_profile=grey_profile(1.0))).getpixel((8, 8)), (188, 188, 188), atol=1)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_a_cmyk_profile_is_applied_to_cmyk(form: str) -> None:
    image = Image.new("CMYK", (32, 32), (255, 0, 0, 0))  # L = 75, in a profile that has only greys
    np.testing.assert_allclose(decode(encoded(image, form, icc_profile=cmyk_profile())).getpixel((8, 8)), (185, 185, 185), atol=4)


def test_a_lab_profile_is_applied_to_lab() -> None:
    plain = decode(encoded(Image.new("LAB", (32, 32), (128, 188, 138)), "TIFF")).getpixel((8, 8))
    exchanged = decode(encoded(Image.new("LAB", (32, 32), (128, 138, 188)), "TIFF", icc_profile=lab_profile())).getpixel((8, 8))
    np.testing.assert_allclose(plain, (209, 62, 106), atol=2)
    np.testing.assert_allclose(exchanged, plain, atol=2)


def test_a_profile_is_applied_to_palettes_and_to_transparent_images() -> None:
    swapped = rgb_profile(SWAPPED, None)
    assert decode(encoded(Image.new("RGB", (32, 32), CORNER).quantize(4), "PNG", icc_profile=swapped)).getpixel((8, 8)) == (30, 220, 30)
    layer = decode(encoded(Image.new("RGBA", (32, 32), (*CORNER, 128)), "PNG", icc_profile=swapped))
    np.testing.assert_allclose(layer.getpixel((8, 8)), (142, 237, 142), atol=1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("profile", [b"x" * 200, bytes(128), rgb_profile(P3, None)[:150], rgb_profile(P3, None)[:-2000], grey_profile(1.0), cmyk_profile()])
def test_an_unusable_profile_is_ignored_with_a_note(form: str, profile: bytes) -> None:
    with opened(encoded(Image.new("RGB", (32, 32), CORNER), form, icc_profile=profile)) as picture:
        np.testing.assert_allclose(picture.image.getpixel((8, 8)), CORNER, atol=6)
        assert picture.note == NO_PROFILE


def test_a_colour_profile_of_a_grey_image_is_ignored_with_a_note() -> None:
    with opened(encoded(Image.new("L", (32, 32), 128), "JPEG", icc_profile=rgb_profile(SRGB, 1.0))) as picture:
        assert (picture.image.getpixel((8, 8)), picture.note) == ((128, 128, 128), NO_PROFILE)


def test_an_incomplete_profile_of_a_jpeg_is_ignored_with_a_note() -> None:
    data = encoded(Image.new("RGB", (32, 32), CORNER), "JPEG", icc_profile=rgb_profile(SWAPPED, None))
    at = data.index(b"ICC_PROFILE\0") + 12
    with opened(data[: at + 1] + b"\x02" + data[at + 2 :]) as picture:  # "part 1 of 2"
        np.testing.assert_allclose(picture.image.getpixel((8, 8)), CORNER, atol=3)
        assert picture.note == NO_PROFILE


@pytest.mark.parametrize("damage", ["checksum", "compression"])
def test_a_png_that_pillow_cannot_open_because_of_its_profile_is_read_without_it(damage: str) -> None:
    data = bytearray(encoded(Image.new("RGB", (32, 32), CORNER), "PNG", icc_profile=rgb_profile(SWAPPED, None)))
    at = data.index(b"iCCP")
    if damage == "checksum":
        data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 1
    else:
        data[data.index(b"\0", at) + 1] = 7
    with opened(bytes(data)) as picture:
        assert (picture.image.getpixel((8, 8)), picture.note) == (CORNER, NO_PROFILE)


def test_a_profile_of_several_megabytes_is_applied() -> None:
    profile = bytearray(rgb_profile(SWAPPED, None) + np.random.default_rng(0).bytes(3_000_000))
    profile[:4] = struct.pack(">I", len(profile))
    assert decode(encoded(Image.new("RGB", (32, 32), CORNER), "PNG", icc_profile=bytes(profile))).getpixel((8, 8)) == (30, 220, 30)
