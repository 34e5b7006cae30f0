import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from gsec_core.captioners import Answer, Captioner, Subject, background
from gsec_core.images.decode import content_hash

STAMPS = Path(__file__).parents[3] / "shared" / "data" / "stamps.parquet"

GOOD = "This image contains a red bus characterised by two decks, large windows and a flat front."


def png(colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    return encoded(Image.new("RGB", size, colour))


def encoded(image: Image.Image | np.ndarray, **parameters: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG", **parameters)
    return buffer.getvalue()


def subject(data: bytes | Callable[[], bytes] | None = None, uri: str = "a.png") -> Subject:
    data = png() if data is None else data
    return Subject(uri, content_hash(data), lambda: data) if isinstance(data, bytes) else Subject(uri, bytes(16), data)


def describe(captioner: Captioner, subject: Subject) -> Answer:
    return background.start(captioner.describe(subject)).result(120)


def describe_all(captioner: Captioner, subjects: list[Subject]) -> list[Answer]:
    """Describe all subjects at once."""
    return [future.result(120) for future in [background.start(captioner.describe(subject)) for subject in subjects]]
