"""Decoding of large images at a reduced size."""

import numpy as np
import pytest
from PIL import Image

from gsec_core.images.decode import decode, opened

from .examples import CORNER, QUIET, WHITE, encoded

pytestmark = QUIET


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_large_image_is_reduced_but_its_full_size_is_recorded(form: str, orientation: int) -> None:
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
def test_an_image_with_a_short_side_is_not_reduced(size: tuple[int, int]) -> None:
    for form in ("JPEG", "PNG"):
        with opened(encoded(Image.new("RGB", size, "teal"), form), 200) as picture:
            assert picture.image.size == picture.size == size


def test_reduced_images_keep_their_colour_up_to_the_last_row_and_column() -> None:
    image = Image.new("RGB", (1003, 701), CORNER)
    for form in ("PNG", "JPEG"):
        with opened(encoded(image, form), 100) as picture:
            for corner in ((0, 0), (picture.image.width - 1, picture.image.height - 1)):
                np.testing.assert_allclose(picture.image.getpixel(corner), CORNER, atol=4)


def test_a_transparent_image_is_reduced_after_it_was_laid_on_white() -> None:
    image = Image.new("RGBA", (800, 800), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 400, 800, 800))
    small = decode(encoded(image, "PNG"), 100)
    assert [small.getpixel((9, y)) for y in (9, small.height - 9)] == [WHITE, (255, 0, 0)]
