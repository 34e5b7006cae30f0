import io
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from gsec_core.images.decode import NO_END, NO_PROFILE, content_hash, decode, limit_ratio, opened, thumbnail
from gsec_core.sources.base import RejectedImage

from ..bad_files import bomb, png
from ..profiles import ADOBE, P3, SRGB, SWAPPED, cmyk_profile, grey_profile, lab_profile, rgb_profile


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def halves(mode: str, left: object, right: object) -> Image.Image:
    """64 x 32, one colour in each half."""
    image = Image.new(mode, (64, 32), left)
    image.paste(right, (32, 0, 64, 32))
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and then ends."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


pytestmark = pytest.mark.filterwarnings("ignore")  # pytest drops the filter that the module sets; a test below looks at it in a process of its own

PHOTO = encoded(Image.effect_noise((200, 150), 80).convert("RGB"), "JPEG", quality=90)


@pytest.mark.parametrize("form", ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
def test_the_usual_formats_are_rgb(form: str) -> None:
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
def test_bytes_that_can_never_be_used_are_rejected_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(RejectedImage, match=reason):
        decode(data)


def test_a_bomb_is_rejected_by_its_header_alone() -> None:
    tracemalloc.start()
    with pytest.raises(RejectedImage, match="megapixels"):
        decode(png_header(13_378, 13_378))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_bomb_that_holds_all_that_its_header_says_is_not_unpacked() -> None:
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


def test_the_limit_itself_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.images.decode.MAX_PIXELS", 64)
    assert decode(encoded(Image.new("L", (8, 8)), "PNG")).size == (8, 8)
    with pytest.raises(RejectedImage, match="megapixels"):
        decode(encoded(Image.new("L", (8, 9)), "PNG"))


def test_pillows_warnings_stay_silent_even_as_errors() -> None:
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


def test_no_mutilation_of_a_file_gives_anything_but_an_image_or_a_rejection() -> None:
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


def test_running_out_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("gsec_core.images.decode.ImageOps.exif_transpose", exhausted)
    with pytest.raises(MemoryError):
        decode(PHOTO)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_has_its_colours_not_their_negative(form: str) -> None:
    # Pillow writes CMYK JPEGs inverted, as Adobe does.
    image = decode(encoded(halves("RGB", "white", "red").convert("CMYK"), form))
    np.testing.assert_allclose(image.getpixel((8, 16)), (255, 255, 255), atol=8)
    np.testing.assert_allclose(image.getpixel((56, 16)), (255, 0, 0), atol=8)


@pytest.mark.parametrize(("form", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">"), ("PPM", "<")])
def test_16_bit_grey_is_scaled_and_not_clipped(form: str, order: str) -> None:
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
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    image = decode(encoded(halves("RGB", "red", "blue"), form, exif=exif))
    assert image.size == (32, 64)
    np.testing.assert_allclose(image.getpixel((16, 8)), (255, 0, 0), atol=8)
    assert decode(encoded(image, form)).size == (32, 64)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\x00\x01\x01\x12"])
def test_broken_exif_costs_no_image(exif: bytes) -> None:
    assert decode(encoded(halves("RGB", "red", "blue"), "JPEG", exif=exif)).size == (64, 32)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        image = decode(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
        np.testing.assert_allclose(image.getpixel((8, 8)), (255, 0, 0), atol=8)


def test_transparency_lies_on_white() -> None:
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


def test_a_hash_is_16_bytes_of_the_content() -> None:
    assert len(content_hash(b"a")) == 16
    assert content_hash(b"a") == content_hash(bytes([97])) != content_hash(b"b")


@pytest.mark.parametrize(("size", "expected"), [((400, 200), (96, 48)), ((1, 5000), (1, 96)), ((5000, 1), (96, 1)), ((20, 10), (20, 10))])
def test_a_thumbnail_fits_and_is_never_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    data = thumbnail(Image.new("RGB", size, "teal"), 96)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", expected)
    np.testing.assert_allclose(image.getpixel((0, 0)), (0, 128, 128), atol=4)


def test_thumbnails_of_equal_pixels_are_equal_and_hold_nothing_else() -> None:
    image = halves("RGB", "red", "blue")
    plain = decode(encoded(image, "JPEG"))
    annotated = decode(encoded(image, "JPEG", comment=b"my address", icc_profile=b"profile" * 20))
    assert thumbnail(plain, 32) == thumbnail(annotated, 32)


def test_extreme_ratios_are_decoded_and_cut_to_their_middle() -> None:
    column = np.zeros((5000, 1, 3), np.uint8)
    column[2496:2504] = 200
    image = limit_ratio(decode(encoded(Image.fromarray(column), "PNG")))
    assert image.size == (1, 8)
    assert (np.asarray(image) == 200).all()
    assert limit_ratio(image.transpose(Image.Transpose.ROTATE_90)).size == (8, 1)


def test_ordinary_ratios_are_left_alone() -> None:
    image = Image.new("RGB", (800, 100))
    assert limit_ratio(image) is image


# Colour profiles

CORNER = (220, 30, 30)


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
    image = Image.new("CMYK", (32, 32), (255, 0, 0, 0))  # L = 75, in a profile that knows greys alone
    np.testing.assert_allclose(decode(encoded(image, form, icc_profile=cmyk_profile())).getpixel((8, 8)), (185, 185, 185), atol=4)


def test_a_lab_profile_is_applied_to_lab() -> None:
    plain = decode(encoded(Image.new("LAB", (32, 32), (128, 188, 138)), "TIFF")).getpixel((8, 8))
    exchanged = decode(encoded(Image.new("LAB", (32, 32), (128, 138, 188)), "TIFF", icc_profile=lab_profile())).getpixel((8, 8))
    np.testing.assert_allclose(plain, (209, 62, 106), atol=2)
    np.testing.assert_allclose(exchanged, plain, atol=2)


def test_a_profile_is_applied_to_palettes_and_below_transparency() -> None:
    swapped = rgb_profile(SWAPPED, None)
    assert decode(encoded(Image.new("RGB", (32, 32), CORNER).quantize(4), "PNG", icc_profile=swapped)).getpixel((8, 8)) == (30, 220, 30)
    layer = decode(encoded(Image.new("RGBA", (32, 32), (*CORNER, 128)), "PNG", icc_profile=swapped))
    np.testing.assert_allclose(layer.getpixel((8, 8)), (142, 237, 142), atol=1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("profile", [b"x" * 200, bytes(128), rgb_profile(P3, None)[:150], rgb_profile(P3, None)[:-2000], grey_profile(1.0), cmyk_profile()])
def test_a_profile_that_cannot_be_used_is_ignored_with_a_note(form: str, profile: bytes) -> None:
    with opened(encoded(Image.new("RGB", (32, 32), CORNER), form, icc_profile=profile)) as picture:
        np.testing.assert_allclose(picture.image.getpixel((8, 8)), CORNER, atol=6)
        assert picture.note == NO_PROFILE


def test_a_grey_image_with_a_profile_of_colours_ignores_it() -> None:
    with opened(encoded(Image.new("L", (32, 32), 128), "JPEG", icc_profile=rgb_profile(SRGB, 1.0))) as picture:
        assert (picture.image.getpixel((8, 8)), picture.note) == ((128, 128, 128), NO_PROFILE)


def test_a_jpeg_that_lacks_a_part_of_its_profile_ignores_it() -> None:
    data = encoded(Image.new("RGB", (32, 32), CORNER), "JPEG", icc_profile=rgb_profile(SWAPPED, None))
    at = data.index(b"ICC_PROFILE\0") + 12
    with opened(data[: at + 1] + b"\x02" + data[at + 2 :]) as picture:  # "part 1 of 2"
        np.testing.assert_allclose(picture.image.getpixel((8, 8)), CORNER, atol=3)
        assert picture.note == NO_PROFILE


@pytest.mark.parametrize("damage", ["checksum", "compression"])
def test_a_png_whose_profile_keeps_pillow_from_reading_it_is_read_without(damage: str) -> None:
    data = bytearray(encoded(Image.new("RGB", (32, 32), CORNER), "PNG", icc_profile=rgb_profile(SWAPPED, None)))
    at = data.index(b"iCCP")
    if damage == "checksum":
        data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 1
    else:
        data[data.index(b"\0", at) + 1] = 7
    with opened(bytes(data)) as picture:
        assert (picture.image.getpixel((8, 8)), picture.note) == (CORNER, NO_PROFILE)


def test_a_profile_of_megabytes_is_applied() -> None:
    profile = bytearray(rgb_profile(SWAPPED, None) + np.random.default_rng(0).bytes(3_000_000))
    profile[:4] = struct.pack(">I", len(profile))
    assert decode(encoded(Image.new("RGB", (32, 32), CORNER), "PNG", icc_profile=bytes(profile))).getpixel((8, 8)) == (30, 220, 30)


# Modes, depths, transparency


def png_of(rows: np.ndarray, depth: int, colour: int, transparent: bytes | None = None) -> bytes:
    """A PNG of rows of packed bytes."""
    data = png(
        int(rows.shape[1] * 8 / depth / {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]), len(rows), depth, colour, b"".join(b"\0" + row.tobytes() for row in rows)
    )
    if transparent is None:
        return data
    at = data.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(transparent)) + b"tRNS" + transparent + struct.pack(">I", zlib.crc32(b"tRNS" + transparent))
    return data[:at] + chunk + data[at:]


WHITE = (255, 255, 255)


@pytest.mark.parametrize(
    ("depth", "packed", "key", "right"),
    [
        (1, [0b01010101], 0, WHITE),  # white is what the others are too
        (1, [0b01010101], 1, (0, 0, 0)),
        (2, [0b01100110], 1, (170, 170, 170)),
        (4, [0x3A, 0x3A], 3, (170, 170, 170)),
        (8, [7, 100, 7, 100], 7, (100, 100, 100)),
        (16, [0, 0, 100, 0, 0, 0, 100, 0], 0, (100, 100, 100)),
        (16, [1, 2, 1, 3, 1, 2, 1, 3], 0x0102, (1, 1, 1)),
    ],
)
def test_grey_of_every_depth_with_a_transparent_value(depth: int, packed: list[int], key: int, right: tuple[int, int, int]) -> None:
    image = decode(png_of(np.array([packed] * 4, np.uint8), depth, 0, struct.pack(">H", key)))
    pixels = [image.getpixel((x, 1)) for x in range(2)]
    assert pixels == ([right, WHITE] if (depth, key) == (1, 1) else [WHITE, right])


@pytest.mark.parametrize("key", [(0x1234, 0x5678, 0x9ABC), (0, 0, 0)])
def test_of_16_bit_colours_the_transparent_one_alone_is_white(key: tuple[int, int, int]) -> None:
    near = (key[0], key[1], key[2] + 1)
    row = np.array([*key, *near], ">u2").view(np.uint8)
    image = decode(png_of(np.stack([row] * 3), 16, 2, struct.pack(">3H", *key)))
    assert [image.getpixel((x, 1)) for x in range(2)] == [WHITE, tuple(value >> 8 for value in key)]


def test_16_bit_grey_and_colours_with_alpha() -> None:
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
    """A TIFF of one strip and one sample a pixel, or ``samples``, little-endian."""
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
def test_a_tiff_has_its_greys_and_not_their_negative(photometric: int, kind: str) -> None:
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


def test_12_bits_are_scaled() -> None:
    values = [0, 1365, 2730, 4095]
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True))
    np.testing.assert_allclose(np.asarray(decode(tiff_of(packed, (4, 1), 12, 1)))[0, :, 0], [0, 85, 170, 255], atol=1)


def test_32_bit_greys_that_are_small_are_stretched_and_not_black() -> None:
    grey = np.asarray(decode(tiff_of(np.arange(0, 256, 51, dtype="<u4").tobytes(), (6, 1), 32, 1)))[0, :, 0]
    np.testing.assert_allclose(grey, range(0, 256, 51), atol=1)


@pytest.mark.parametrize(("maxval", "form"), [(255, ">u1"), (1023, ">u2"), (4095, ">u2"), (65535, ">u2")])
def test_a_pgm_is_scaled_by_its_own_white(maxval: int, form: str) -> None:
    values = np.array([0, maxval // 3, maxval], form)
    np.testing.assert_allclose(np.asarray(decode(b"P5 3 1 %d\n" % maxval + values.tobytes()))[0, :, 0], [0, 85, 255], atol=1)


def test_jpeg_2000_of_16_bits_is_scaled() -> None:
    values = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 64, 0)
    grey = np.asarray(decode(encoded(Image.fromarray(values), "JPEG2000")))[..., 0]
    np.testing.assert_allclose(grey, values / 257, atol=1)


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_a_palette_with_alpha_lies_on_white(mode: str) -> None:
    if mode == "PA":
        data = encoded(halves("RGBA", (0, 0, 0, 0), (0, 0, 255, 255)), "TIFF", compression="tiff_lzw")
    else:
        palette = halves("P", 0, 1)
        palette.putpalette([9, 9, 9, 0, 0, 255])
        data = encoded(palette, "PNG", transparency=bytes([0, 255]))
    image = decode(data)
    assert (image.getpixel((8, 16)), image.getpixel((56, 16))) == (WHITE, (0, 0, 255))


# Alpha that is padding


def bmp_32(alpha: int, masks: bool = True) -> bytes:
    """4 x 4 in (220, 30, 30), with a version 4 header and a mask for alpha, or as plain 32-bit pixels."""
    pixels = bytes([30, 30, 220, alpha]) * 16
    size = 108 if masks else 40
    header = struct.pack("<IiiHHIIiiII", size, 4, 4, 1, 32, 3 if masks else 0, len(pixels), 0, 0, 0, 0)
    if masks:
        header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + size + len(pixels), 0, 0, 14 + size) + header + pixels


def ico_32(alpha: int, mask: bytes = bytes(4)) -> bytes:
    """4 x 4 in (220, 30, 30), as a bitmap and not as a PNG."""
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
def test_alpha_that_is_padding_is_opaque(data: bytes) -> None:
    assert decode(data).getpixel((1, 1)) == CORNER


def test_alpha_that_is_meant_is_transparent() -> None:
    half = (237, 142, 142)
    np.testing.assert_allclose(decode(bmp_32(128)).getpixel((1, 1)), half, atol=1)
    np.testing.assert_allclose(decode(ico_32(128)).getpixel((1, 1)), half, atol=1)
    assert decode(tiff_of(bytes([220, 30, 30, 0]) * 16, (4, 4), 8, 2, samples=4, extra=2)).getpixel((1, 1)) == WHITE
    assert decode(encoded(Image.new("RGBA", (16, 16)), "ICO")).getpixel((1, 1)) == WHITE  # a PNG inside


def test_an_icon_without_alpha_is_seen_through_its_mask() -> None:
    image = decode(ico_32(0, mask=bytes([0b11000000, 0, 0, 0])))
    assert [image.getpixel((x, 2)) for x in range(4)] == [WHITE, WHITE, CORNER, CORNER]


# JPEGs that lack their end

_NOISE = Image.effect_noise((96, 80), 60).convert("RGB")
JPEGS = {
    "baseline": encoded(_NOISE, "JPEG", quality=85),
    "progressive": encoded(_NOISE, "JPEG", quality=85, progressive=True),
    "grey": encoded(_NOISE.convert("L"), "JPEG", quality=85),
    "grey progressive": encoded(_NOISE.convert("L"), "JPEG", quality=85, progressive=True),
    "cmyk": encoded(_NOISE.convert("CMYK"), "JPEG", quality=85),
    "restarts": encoded(_NOISE, "JPEG", quality=85, restart_marker_rows=1),
    "restarts progressive": encoded(_NOISE, "JPEG", quality=85, progressive=True, restart_marker_blocks=5),
    "4:4:4": encoded(_NOISE, "JPEG", quality=95, subsampling=0, optimize=True),
    "smooth": encoded(Image.linear_gradient("L").convert("RGB"), "JPEG", quality=75),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("end", [b"", b"\xff", b"\0", b"\0" * 5000, b"\xff" * 5000, b"\n", b"junk at the end"])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_used_with_a_note(kind: str, end: bytes) -> None:
    whole = JPEGS[kind]
    with opened(whole[:-2] + end) as picture:
        assert picture.note == NO_END
        assert picture.image.tobytes() == decode(whole).tobytes()


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_ends_well_has_no_note_whatever_follows(kind: str) -> None:
    for more in (b"", b"\0" * 100, b"junk", b"\xff" * 9, JPEGS["grey"]):
        with opened(JPEGS[kind] + more) as picture:
            assert picture.note is None


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("fill", [b"", b"\0" * 20_000])
def test_a_jpeg_that_lacks_pixels_is_rejected_wherever_it_is_cut(kind: str, fill: bytes) -> None:
    whole = JPEGS[kind]
    first = whole.index(b"\xff\xda")
    # The last bytes may hold nothing that is seen: a cut there must not change a pixel, if it is taken.
    ends = {*np.linspace(2, len(whole) - 12, 40).astype(int), *(match.start() for match in re.finditer(rb"\xff[\xd0-\xd7\xda]", whole)), first + 10}
    taken = []
    for end in sorted(int(end) for end in ends):
        try:
            decode(whole[:end] + fill)
        except RejectedImage:
            continue
        taken.append(end)
    assert not taken
    for end in range(len(whole) - 12, len(whole) - 2):
        try:
            image = decode(whole[:end] + fill)
        except RejectedImage:
            continue
        assert np.abs(np.asarray(image).astype(int) - np.asarray(decode(whole))).max() <= 2, end


# Reduced sizes, and memory


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_large_image_is_reduced_and_its_size_is_that_of_the_whole(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.radial_gradient("L").resize((1600, 1200)).convert("RGB")
    image.paste("red", (0, 0, 800, 600))
    data = encoded(image, form, exif=exif)
    whole = decode(data)
    with opened(data, 200) as picture:
        assert picture.size == whole.size == ((1600, 1200) if orientation in (1, 3) else (1200, 1600))
        assert 200 <= min(picture.image.size) < 400
        small = whole.resize(picture.image.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(small).astype(int) - np.asarray(picture.image)).mean() < 2


@pytest.mark.parametrize("size", [(3000, 40), (40, 3000), (399, 399), (1, 5000)])
def test_the_shorter_side_says_whether_an_image_is_reduced(size: tuple[int, int]) -> None:
    for form in ("JPEG", "PNG"):
        with opened(encoded(Image.new("RGB", size, "teal"), form), 200) as picture:
            assert picture.image.size == picture.size == size


def test_reduced_images_are_as_wide_as_their_last_column() -> None:
    image = Image.new("RGB", (1003, 701), CORNER)
    for form in ("PNG", "JPEG"):
        with opened(encoded(image, form), 100) as picture:
            for corner in ((0, 0), (picture.image.width - 1, picture.image.height - 1)):
                np.testing.assert_allclose(picture.image.getpixel(corner), CORNER, atol=4)


def test_transparency_is_reduced_as_it_is_seen() -> None:
    image = Image.new("RGBA", (800, 800), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 400, 800, 800))
    small = decode(encoded(image, "PNG"), 100)
    assert [small.getpixel((9, y)) for y in (9, small.height - 9)] == [WHITE, (255, 0, 0)]
