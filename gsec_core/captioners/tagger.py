"""The embedded captioner: the name of an ImageNet class and three measured properties, in the words of the template.

It is not a language model; it lets all later stages work without a server.
"""

import asyncio

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsec_core.captioners.base import Answer, Subject
from gsec_core.captioners.template import failed, sentence
from gsec_core.devices import resolve, set_threads, thread_count
from gsec_core.encoders.lite import LiteEncoder, class_names, image_network
from gsec_core.images import decode as images
from gsec_core.sources.base import RejectedImage
from gsec_core.tables import DESCRIBED

TAGGER = "tagger"
"""Name of the captioner and of its model."""

VERSION = 2
"""Increased when the descriptions of equal images change."""

_SIDE = 96
"""Images are measured at this width and height, so that measures are comparable."""
_HUES = ((15, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (195, "turquoise"), (255, "blue"), (290, "purple"), (345, "pink"), (360, "red"))
"""Colour names of ranges of hue, with their upper ends in degrees."""
_COLOURS = ("black", "grey", "white", "red", "pink", "orange", "brown", "yellow", "green", "turquoise", "blue", "purple")
_GREYS = 3


class Tagger:
    """Describes an image by the most probable ImageNet class (EfficientNet-Lite0), dominant colour, brightness and amount of detail."""

    model = TAGGER
    concurrency = 1
    form = "filled in"

    def __init__(self, *, device: str, threads: int) -> None:
        set_threads(threads)
        self._network = image_network("fp32", resolve(device, "encode.device"), thread_count(threads))
        self._names = class_names()

    def check(self) -> None:
        """Nothing to check: everything that it needs is inside installed packages."""

    async def describe(self, subject: Subject) -> Answer:
        return await asyncio.to_thread(self._describe, subject)

    def _describe(self, subject: Subject) -> Answer:
        try:
            image = images.decode(subject.read(), 2 * LiteEncoder.side)
        except RejectedImage as error:
            return failed(str(error))
        object, attributes = self._class_name(image), properties(image)
        return Answer(sentence(object, attributes), object, attributes, DESCRIBED)

    def _class_name(self, image: Image.Image) -> str:
        _, _, classes = self._network(LiteEncoder.preprocess(image)[None])
        return self._names[int(classes[0, 0])]


def tagger_identity() -> dict[str, object]:
    """Identity for fingerprints: name and version, since there are no settings."""
    return {"name": TAGGER, "version": VERSION}


def properties(image: Image.Image) -> tuple[str, str, str]:
    """Dominant colour, brightness and amount of detail of an RGB image, in words."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    luma = np.asarray(small.convert("L"), np.float32)
    mean = float(luma.mean())
    tones = "dark tones" if mean < 85 else "bright tones" if mean > 170 else "medium tones"
    change = float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 2
    detail = "smooth surfaces" if change < 6 else "fine detail" if change > 14 else "some texture"
    return f"{_dominant_colour(np.asarray(small.convert('HSV'), np.float32))} colours", tones, detail


def _dominant_colour(hsv: NDArray[np.float32]) -> str:
    """Name of the dominant colour of HSV pixels (height, width, 3). Greys are ignored if a fifth is coloured, as backgrounds are often white or black."""
    degrees, saturation, value = hsv[..., 0] * (360 / 256), hsv[..., 1] / 255, hsv[..., 2] / 255
    ends, hues = zip(*_HUES, strict=True)
    names = np.array(hues)[np.searchsorted(ends, degrees, side="right")]
    names = np.where((names == "orange") & (value < 0.6), "brown", names)
    names = np.where((names == "red") & (saturation < 0.5) & (value > 0.7), "pink", names)
    names = np.where((saturation < 0.2) | (value < 0.2), np.where(value < 0.2, "black", np.where(value > 0.8, "white", "grey")), names)
    counts = np.array([np.count_nonzero(names == colour) for colour in _COLOURS])
    if counts[_GREYS:].sum() >= names.size / 5:
        counts[:_GREYS] = 0
    return _COLOURS[int(counts.argmax())]
