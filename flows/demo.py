"""The demonstration: a corpus made from the photographs that ship inside scikit-image and scikit-learn.

Every image is a crop of one photograph, at random mirrored, brighter or darker; the photograph is its label. The labels are only
used to score the finished result. The demonstration checks that everything works; it is not a benchmark.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from flows import terminal
from gsec_core.errors import Refused
from gsec_core.results import quality
from gsec_core.stages.base import Context

PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "coins", "grass", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
"""Names in `skimage.data` of photographs that are part of the package itself."""

SAMPLES = ("china.jpg", "flower.jpg")
"""Names of photographs for `sklearn.datasets.load_sample_image`."""

CLUSTERS = len(PHOTOGRAPHS) + len(SAMPLES)

CROPS = 40
"""Number of images from each photograph."""


def make_photographs(directory: Path) -> Path:
    """Write the images to ``directory/PHOTOGRAPH/NUMBER.jpg``, the same at every call. Existing files stay. Returns ``directory``."""
    for name, photograph in photographs():
        random = np.random.default_rng(list(name.encode()))
        folder = directory / Path(name).stem
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(CROPS):
            image = _vary(photograph, random)
            path = folder / f"{number:02d}.jpg"
            if not path.exists():
                image.save(path, quality=90)
    return directory


def photographs() -> list[tuple[str, Image.Image]]:
    """Names and RGB images of the photographs. Raises Refused if scikit-image is not installed."""
    try:
        from skimage import data
    except ImportError:
        raise Refused("gsec demo: its photographs are in scikit-image, which is not installed: pip install 'gsec[demo]'.") from None
    from sklearn.datasets import load_sample_image

    arrays = [(name, getattr(data, name)()) for name in PHOTOGRAPHS] + [(name, load_sample_image(name)) for name in SAMPLES]
    return [(name, Image.fromarray(array).convert("RGB")) for name, array in arrays]


def _vary(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """A random square crop of 35 to 80% of the shorter side, resized to 256 pixels, at random mirrored, brighter or darker."""
    side = int(min(photograph.size) * random.uniform(0.35, 0.8))
    left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(crop).enhance(random.uniform(0.6, 1.4))


def show_scores(context: Context) -> None:
    """Print ACC, NMI and ARI of the run's labellings. The true label of an image is its folder."""
    found = quality.with_labels(context, lambda uri, content_hash: uri.split("/")[0])
    rows = [{name: value for name, value in row.items() if name not in ("images", "unlabelled")} for row in found]
    terminal.err.print(terminal.table("against the photographs that the crops are of", rows))
    terminal.err.print("This checks that everything works. It is not a benchmark: crops of different photographs are easy to tell apart.")
