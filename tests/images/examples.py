"""Makes images to decode, as bytes."""

import io

import pytest
from PIL import Image

QUIET = pytest.mark.filterwarnings("ignore")
"""Ignores warnings, since pytest drops the filter that the module sets. One test checks that filter in a process of its own."""

CORNER = (220, 30, 30)
WHITE = (255, 255, 255)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def halves(mode: str, left: object, right: object) -> Image.Image:
    """An image of 64 x 32 pixels with one colour in each half."""
    image = Image.new(mode, (64, 32), left)
    image.paste(right, (32, 0, 64, 32))
    return image
