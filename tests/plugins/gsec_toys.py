"""A method, an encoder and a captioner of another package, as small as possible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from gsec_core.captioners import Answer, Captioner, Subject
from gsec_core.config import DescribeConfig
from gsec_core.encoders import Embedded
from gsec_core.methods import Method
from gsec_core.section import Section
from gsec_core.tables import FREE
from gsec_core.text import CAPTIONS, NONE


class ToySettings(Section):
    """Settings of the toy."""

    sharpness: float = Field(10.0, gt=0, description="Of a member's labels.")


METHOD = Method(
    name="toy",
    title="A toy",
    paper="https://example.org/toy",
    does="Nearest of random images.",
    texts=(NONE, CAPTIONS),
    Settings=ToySettings,
    estimator="gsec_toys_method:Toy",
    n_members=lambda settings: 3,
)


class Colours:
    """An encoder whose vector is the mean colour of an image; texts get vectors of the same length."""

    has_texts = True

    dim = 8
    joint_dim = None
    side = 8
    preprocessing: Mapping[str, object] = {"toy": 1}

    def __init__(self, reference: str, *, precision: str, device: str) -> None:
        self.precision = precision

    @classmethod
    def check(cls, reference: str) -> None: ...

    @staticmethod
    def checkpoint(reference: str) -> Path | None:
        return None

    def preprocess(self, image: Image.Image) -> NDArray[np.generic]:
        return np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1)

    def encode_images(self, pixels: NDArray[np.generic]) -> Embedded:
        mean = np.asarray(pixels, np.float32).mean((2, 3)) / 255
        rows = np.hstack([mean, 1 - mean, mean[:, :2]]).astype(np.float32)
        return Embedded(rows / np.linalg.norm(rows, axis=1, keepdims=True), None)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([[1 + text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass(frozen=True)
class _Captioner:
    model: str
    concurrency: int = 2
    form: str = "as it comes"

    def check(self) -> None: ...

    async def describe(self, subject: Subject) -> Answer:
        return Answer(f"a file of {len(subject.read())} bytes", None, (), FREE)


@dataclass(frozen=True)
class Sizes:
    """A captioner that describes an image by the size of its file."""

    usage: str = "toy"
    can_be_asked: bool = False

    def load(self, reference: str, config: DescribeConfig, *, device: str, threads: int) -> Captioner:
        return _Captioner("sizes")

    def model(self, reference: str) -> str:
        return "sizes"

    def identity(self, reference: str, config: DescribeConfig) -> Mapping[str, object]:
        return {"toy": 1}


CAPTIONER = Sizes()
