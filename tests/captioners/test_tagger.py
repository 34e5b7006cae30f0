import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from gsec_core.captioners import Captioner, captioner_identity, load_captioner
from gsec_core.captioners.tagger import properties
from gsec_core.captioners.template import parse
from gsec_core.config import DescribeConfig
from gsec_core.encoders.lite import class_names
from gsec_core.errors import Refused
from gsec_core.tables import DESCRIBED, FAILED

from .examples import describe, encoded, png, subject


@pytest.fixture(scope="session")
def tagger() -> Captioner:
    return load_captioner(DescribeConfig(), device="cpu", threads=1)


@pytest.mark.parametrize(("photo", "object"), [("chelsea", "tiger cat"), ("coffee", "espresso"), ("rocket", "missile")])
def test_a_photo_is_described_in_the_template(tagger: Captioner, photo: str, object: str) -> None:
    answer = describe(tagger, subject(encoded(getattr(data, photo)())))
    assert (answer.object, len(answer.attributes), answer.status) == (object, 3, DESCRIBED)
    assert parse(answer.text or "") == answer


def test_the_same_image_gives_the_same_answer(tagger: Captioner) -> None:
    image = subject(encoded(data.coffee()))
    assert describe(tagger, image) == describe(tagger, image)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_images_of_any_size_are_described(tagger: Captioner, size: tuple[int, int]) -> None:
    assert describe(tagger, subject(png(size=size))).object in class_names()


def test_a_file_that_is_no_image_is_failed(tagger: Captioner) -> None:
    answer = describe(tagger, subject(b"no image"))
    assert (answer.text, answer.status) == (None, FAILED)
    assert "not an image" in (answer.reason or "")


@pytest.mark.parametrize(
    ("colour", "words"),
    [
        ((0, 0, 0), ("black colours", "dark tones", "smooth surfaces")),
        ((255, 255, 255), ("white colours", "bright tones", "smooth surfaces")),
        ((128, 128, 128), ("grey colours", "medium tones", "smooth surfaces")),
        ((200, 20, 20), ("red colours", "dark tones", "smooth surfaces")),
        ((255, 180, 190), ("pink colours", "bright tones", "smooth surfaces")),
        ((110, 70, 30), ("brown colours", "dark tones", "smooth surfaces")),
        ((255, 140, 0), ("orange colours", "medium tones", "smooth surfaces")),
        ((40, 160, 60), ("green colours", "medium tones", "smooth surfaces")),
        ((30, 60, 220), ("blue colours", "dark tones", "smooth surfaces")),
    ],
)
def test_colour_brightness_and_texture_are_put_into_words(colour: tuple[int, int, int], words: tuple[str, str, str]) -> None:
    assert properties(Image.new("RGB", (50, 40), colour)) == words


def test_a_white_background_is_ignored_for_the_colour_and_noise_is_fine_detail() -> None:
    image = Image.new("RGB", (100, 100), "white")
    image.paste((30, 60, 220), (20, 20, 75, 75))
    assert properties(image)[0] == "blue colours"
    assert properties(Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)))[2] == "fine detail"


def test_loading_is_silent_and_offline_and_sets_the_threads(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    script = f"""
import socket, torch
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from gsec_core.captioners import Subject, background, load_captioner
from gsec_core.config import DescribeConfig
tagger = load_captioner(DescribeConfig(), device="auto", threads=1)
tagger.check()
background.start(tagger.describe(Subject("a.png", bytes(16), Path({str(tmp_path / "a.png")!r}).read_bytes))).result()
assert torch.get_num_threads() == 1
assert not {{"sentence_transformers", "openai"}} & set(__import__("sys").modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_device_is_refused() -> None:
    with pytest.raises(Refused, match=r"encode\.device"):
        load_captioner(DescribeConfig(), device="cuda:99", threads=1)


def test_the_identity_of_the_tagger_is_its_name_and_version() -> None:
    assert captioner_identity(DescribeConfig(captioner="tagger")) == {"name": "tagger", "version": 2}
