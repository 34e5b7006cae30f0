"""JPEGs that were truncated."""

import re

import numpy as np
import pytest
from PIL import Image

from gsec_core.images.decode import NO_END, decode, opened
from gsec_core.sources.base import RejectedImage

from .examples import QUIET, encoded

pytestmark = QUIET

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
def test_a_jpeg_that_lacks_only_its_end_marker_is_used_with_a_note(kind: str, end: bytes) -> None:
    whole = JPEGS[kind]
    with opened(whole[:-2] + end) as picture:
        assert picture.note == NO_END
        assert picture.image.tobytes() == decode(whole).tobytes()


@pytest.mark.parametrize("kind", JPEGS)
def test_a_complete_jpeg_has_no_note_whatever_bytes_follow(kind: str) -> None:
    for more in (b"", b"\0" * 100, b"junk", b"\xff" * 9, JPEGS["grey"]):
        with opened(JPEGS[kind] + more) as picture:
            assert picture.note is None


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("fill", [b"", b"\0" * 20_000])
def test_a_jpeg_that_lacks_pixels_is_rejected_at_any_place_of_the_cut(kind: str, fill: bytes) -> None:
    whole = JPEGS[kind]
    first = whole.index(b"\xff\xda")
    # The last bytes may hold nothing visible: an image cut there may be used, but then its pixels must be those of the whole.
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
