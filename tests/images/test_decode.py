"""Decoding: which bytes become images, and which are rejected with a reason; thumbnails."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from gsec_core.images.decode import content_hash, decode, limit_ratio, thumbnail
from gsec_core.sources.base import RejectedImage

from ..bad_files import bomb
from .examples import QUIET, encoded, halves

pytestmark = QUIET


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, without any pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PHOTO = encoded(Image.effect_noise((200, 150), 80).convert("RGB"), "JPEG", quality=90)


@pytest.mark.parametrize("form", ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
def test_the_usual_formats_are_decoded_to_rgb(form: str) -> None:
    image = decode(encoded(halves("RGB", "red", "blue"), form))
    assert image.mode == "RGB"
    for x, expected in ((0.25, (255, 0, 0)), (0.75, (0, 0, 255))):
        np.testing.assert_allclose(image.getpixel((int(x * image.width), image.height // 2)), expected, atol=8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"This is a text that somebody named photo.jpg.", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (PHOTO[:2], "not an image"),
        (PHOTO[:12], "truncated"),
        (png_header(0, 10), "not an image"),
        (PHOTO[: len(PHOTO) // 2], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:1500], "truncated"),
        (PHOTO[:-2000] + bytes(100), "truncated"),
        (png_header(10, 10), "truncated"),
        (png_header(100_000, 100_000), "larger than 178 megapixels"),
    ],
)
def test_files_that_cannot_be_used_are_rejected_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(RejectedImage, match=reason):
        decode(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafheic" + bytes(200), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(200), "HEIC"),
        (b"\xff\x0a" + bytes(200), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200), "JPEG XL"),
    ],
)
def test_a_common_format_that_is_not_opened_is_rejected_by_its_name(data: bytes, name: str) -> None:
    with pytest.raises(RejectedImage, match=f"^a {name} image, which gsec cannot open: convert it, for example to JPEG$"):
        decode(data)


def test_a_damaged_avif_is_not_taken_for_another_format() -> None:
    data = encoded(Image.new("RGB", (32, 32)), "AVIF")
    with pytest.raises(RejectedImage, match="damaged"):
        decode(data[: len(data) // 2])


def test_a_decompression_bomb_is_rejected_by_its_header_alone() -> None:
    tracemalloc.start()
    with pytest.raises(RejectedImage, match="megapixels"):
        decode(png_header(13_378, 13_378))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_decompression_bomb_with_all_its_pixels_is_not_unpacked() -> None:
    script = """
import io, re, sys
from pathlib import Path
from PIL import Image
from gsec_core.images.decode import decode
from gsec_core.sources.base import RejectedImage
data = sys.stdin.buffer.read()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
try:
    decode(data)
except RejectedImage as rejected:
    print(rejected)
assert peak() - before < 20, "megabytes"
Image.MAX_IMAGE_PIXELS = None
Image.open(io.BytesIO(data)).load()
assert peak() - before > 150, "it is no bomb"
"""
    done = subprocess.run([sys.executable, "-c", script], input=bomb(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"larger than 178 megapixels\n", b"")


def test_an_image_with_exactly_the_most_pixels_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.images.decode.MAX_PIXELS", 64)
    assert decode(encoded(Image.new("L", (8, 8)), "PNG")).size == (8, 8)
    with pytest.raises(RejectedImage, match="megapixels"):
        decode(encoded(Image.new("L", (8, 9)), "PNG"))


def test_pillows_warnings_are_silenced_even_if_warnings_are_errors() -> None:
    script = """
import io
from PIL import Image
from gsec_core.images.decode import decode
buffer = io.BytesIO()
Image.new("L", (12, 12)).save(buffer, "PNG")
Image.MAX_IMAGE_PIXELS = 100  # 144 pixels are between Pillow's warning and its error
assert decode(buffer.getvalue()).size == (12, 12)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_with_random_damage_gives_an_image_or_is_rejected() -> None:
    random = np.random.default_rng(0)
    image = Image.effect_noise((48, 48), 60).convert("RGB")
    files = [encoded(image, form) for form in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "ICO", "PPM", "JPEG2000", "AVIF")]
    for data in files:
        for _ in range(40):
            broken = np.frombuffer(data, np.uint8).copy()
            broken[random.integers(0, min(len(broken), 400), 4)] = random.integers(0, 256, 4)
            try:
                assert decode(broken.tobytes()).mode == "RGB"
            except RejectedImage as rejected:
                assert "0x" not in str(rejected)  # noqa: PT017 - reasons are grouped by their text


def test_running_out_of_memory_does_not_reject_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("gsec_core.images.decode.ImageOps.exif_transpose", exhausted)
    with pytest.raises(MemoryError):
        decode(PHOTO)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_images_have_their_colours_and_not_the_negative(form: str) -> None:
    # Pillow writes CMYK JPEGs inverted, as Adobe does.
    image = decode(encoded(halves("RGB", "white", "red").convert("CMYK"), form))
    np.testing.assert_allclose(image.getpixel((8, 16)), (255, 255, 255), atol=8)
    np.testing.assert_allclose(image.getpixel((56, 16)), (255, 0, 0), atol=8)


@pytest.mark.parametrize(("form", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">"), ("PPM", "<")])
def test_grey_of_16_bits_is_scaled_and_not_clipped(form: str, order: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (16, 16), ramp.astype(f"{order}u2").tobytes())
    grey = np.asarray(decode(encoded(image, form)))[..., 0]
    np.testing.assert_allclose(grey, ramp / 257, atol=1)


def test_float_grey_is_stretched_over_its_own_range() -> None:
    values = np.linspace(-2, 6, 64, dtype=np.float32).reshape(8, 8)
    values[0, 1] = np.nan
    grey = np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))[..., 0]
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: the image must be turned clockwise
    image = decode(encoded(halves("RGB", "red", "blue"), form, exif=exif))
    assert image.size == (32, 64)
    np.testing.assert_allclose(image.getpixel((16, 8)), (255, 0, 0), atol=8)
    assert decode(encoded(image, form)).size == (32, 64)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\x00\x01\x01\x12"])
def test_an_image_with_broken_exif_data_is_decoded(exif: bytes) -> None:
    assert decode(encoded(halves("RGB", "red", "blue"), "JPEG", exif=exif)).size == (64, 32)


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        image = decode(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
        np.testing.assert_allclose(image.getpixel((8, 8)), (255, 0, 0), atol=8)


def test_transparent_pixels_become_white() -> None:
    palette = halves("P", 0, 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    transparent_black, half_black = (0, 0, 0, 0), (0, 0, 0, 128)
    rgba = halves("RGBA", transparent_black, half_black)
    files = {
        "palette PNG": (encoded(palette, "PNG", transparency=0), (0, 0, 255)),
        "palette PNG, partly": (encoded(palette, "PNG", transparency=bytes([0, 255])), (0, 0, 255)),
        "palette GIF": (encoded(palette, "GIF", transparency=0), (0, 0, 255)),
        "RGBA": (encoded(rgba, "PNG"), (127, 127, 127)),
        "grey and alpha": (encoded(rgba.convert("LA"), "PNG"), (127, 127, 127)),
        "grey with a transparent value": (encoded(halves("L", 7, 100), "PNG", transparency=7), (100, 100, 100)),
    }
    for name, (data, right) in files.items():
        image = decode(data)
        assert (image.getpixel((8, 16)), image.getpixel((56, 16))) == ((255, 255, 255), right), name


def test_bilevel_and_grey_become_rgb() -> None:
    for mode in ("1", "L"):
        assert decode(encoded(halves(mode, 0, 255), "PNG")).getpixel((56, 16)) == (255, 255, 255)


def test_a_content_hash_has_16_bytes_and_depends_on_the_bytes() -> None:
    assert len(content_hash(b"a")) == 16
    assert content_hash(b"a") == content_hash(bytes([97])) != content_hash(b"b")


@pytest.mark.parametrize(("size", "expected"), [((400, 200), (96, 48)), ((1, 5000), (1, 96)), ((5000, 1), (96, 1)), ((20, 10), (20, 10))])
def test_a_thumbnail_fits_into_its_size_and_is_never_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    data = thumbnail(Image.new("RGB", size, "teal"), 96)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", expected)
    np.testing.assert_allclose(image.getpixel((0, 0)), (0, 128, 128), atol=4)


def test_thumbnails_depend_on_the_pixels_only_and_hold_no_metadata() -> None:
    image = halves("RGB", "red", "blue")
    plain = decode(encoded(image, "JPEG"))
    annotated = decode(encoded(image, "JPEG", comment=b"my address", icc_profile=b"profile" * 20))
    assert thumbnail(plain, 32) == thumbnail(annotated, 32)


def test_images_of_extreme_ratios_are_cut_to_their_middle() -> None:
    column = np.zeros((5000, 1, 3), np.uint8)
    column[2496:2504] = 200
    image = limit_ratio(decode(encoded(Image.fromarray(column), "PNG")))
    assert image.size == (1, 8)
    assert (np.asarray(image) == 200).all()
    assert limit_ratio(image.transpose(Image.Transpose.ROTATE_90)).size == (8, 1)


def test_images_of_ordinary_ratios_are_not_cut() -> None:
    image = Image.new("RGB", (800, 100))
    assert limit_ratio(image) is image
