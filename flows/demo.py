"""The demonstration's images, which programs on this machine bring along, and its scores. Labels are only used to score the finished result.

Debian's package tuxpaint-stamps-default has 317 labelled photographs and drawings, each with a sentence that a person wrote. If it is
installed, these are clustered, and the sentences are the captions. Otherwise the images are crops of the photographs inside
scikit-image and scikit-learn: a check that everything works, and no more, as crops of different photographs are easy to tell apart.
"""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from flows import terminal
from gsec_core.errors import Refused
from gsec_core.results import quality
from gsec_core.stages.base import Context

STAMPS = Path("/usr/share/tuxpaint/stamps")
"""Where tuxpaint-stamps-default installs its pictures: PNG files, each with a text file of the same name whose first line describes it in English."""

KINDS = {
    "mammal": "animals/mammals",
    "bird": "animals/birds",
    "insect": "animals/insects",
    "fish": "animals/fish",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "vehicle": "vehicles",
    "house": "town/houses",
    "tool": "household/tools",
    "clothing": "clothes",
}
"""Class -> its folder in `STAMPS`."""

PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "coins", "grass", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
"""Names in `skimage.data` of photographs that are part of the package itself."""

SAMPLES = ("china.jpg", "flower.jpg")
"""Names of photographs for `sklearn.datasets.load_sample_image`."""

CLUSTERS = len(PHOTOGRAPHS) + len(SAMPLES)

CROPS = 40
"""Number of images from each photograph."""


@dataclass(frozen=True)
class Demonstration:
    """Images to cluster, in a folder for each class."""

    settings: dict[str, Any]
    """The source, the number of clusters, and where captions come from."""
    images: str
    """What the images are, in words."""
    remark: str
    """What the scores mean."""


def prepare(directory: Path) -> Demonstration:
    """Write the images below ``directory``, the same at every call; existing files stay. Raises Refused if the photographs are not installed."""
    return _stamps(directory) if STAMPS.is_dir() else _crops(directory / "images")


def _stamps(directory: Path) -> Demonstration:
    images, captions = directory / "stamps", directory / "stamps.csv"
    rows = []
    for kind, folder in KINDS.items():
        for stamp in sorted((STAMPS / folder).rglob("*.png")):
            described, uri = stamp.with_suffix(".txt"), Path(kind, stamp.relative_to(STAMPS / folder))
            if not described.exists():  # the mirror image of another stamp
                continue
            copy = images / uri
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(stamp, copy)
            rows.append((uri.as_posix(), described.read_text("utf-8").partition("\n")[0]))
    with captions.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("uri", "text"), *rows])
    return Demonstration(
        {"source": str(images), "clusters": len(KINDS), "describe": {"captioner": f"table:{captions}"}},
        f"{len(rows)} photographs and drawings of {len(KINDS)} kinds, from tuxpaint-stamps-default",
        "The settings were developed on these images, among others, so the scores are somewhat optimistic.",
    )


def _crops(images: Path) -> Demonstration:
    for name, photograph in photographs():
        random = np.random.default_rng(list(name.encode()))
        folder = images / Path(name).stem
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(CROPS):
            image = vary(photograph, random)
            path = folder / f"{number:02d}.jpg"
            if not path.exists():
                image.save(path, quality=90)
    return Demonstration(
        {"source": str(images), "clusters": CLUSTERS},
        f"{CLUSTERS * CROPS} crops of {CLUSTERS} photographs",
        "This checks that everything works. It is not a benchmark: crops of different photographs are easy to tell apart.",
    )


def photographs() -> list[tuple[str, Image.Image]]:
    """Names and RGB images of the photographs. Raises Refused if scikit-image is not installed."""
    try:
        from skimage import data
    except ImportError:
        raise Refused("gsec demo: its photographs are in scikit-image, which is not installed: pip install 'gsec[demo]'.") from None
    from sklearn.datasets import load_sample_image

    arrays = [(name, getattr(data, name)()) for name in PHOTOGRAPHS] + [(name, load_sample_image(name)) for name in SAMPLES]
    return [(name, Image.fromarray(array).convert("RGB")) for name, array in arrays]


def vary(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """A random square crop of 35 to 80% of the shorter side, resized to 256 pixels, at random mirrored, brighter or darker."""
    side = int(min(photograph.size) * random.uniform(0.35, 0.8))
    left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(crop).enhance(random.uniform(0.6, 1.4))


def show_scores(context: Context, remark: str) -> None:
    """Print ACC, NMI and ARI of the run's labellings. The true label of an image is the name of its folder."""
    found = quality.with_labels(context, lambda uri, content_hash: uri.split("/")[0])
    rows = [{name: value for name, value in row.items() if name not in ("images", "unlabelled")} for row in found]
    terminal.err.print(terminal.table("against the folders of the images", rows))
    terminal.err.print(remark)
