"""One corpus clustered by several criteria: each gives its own clustering, and nothing is done twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from sklearn.metrics import adjusted_rand_score

from gsec_core.config import PipelineConfig
from gsec_core.report.collect import collect

from ..captioners.server import Request, Response, Server, reply
from ..pictures import cluster, labels, settings

COLOUR, SHAPE = "the colour of the thing", "the shape of the thing"
EACH = 6


@pytest.fixture
def server() -> Iterator[Server]:
    """A captioning server whose model describes the colour or the shape of a thing on white, as the criterion asks."""
    with Server() as running:
        running.answer = _see
        yield running


def _see(request: Request) -> Response:
    if request.is_plain:
        return reply()
    picture = request.picture.convert("RGB")
    red, _, blue = picture.getpixel((32, 32))  # type: ignore[misc]
    corner = picture.getpixel((14, 14))
    seen = {COLOUR: "red hue" if red > blue else "blue hue", SHAPE: "disc" if min(corner) > 200 else "square"}  # type: ignore[type-var, arg-type]
    [asked] = [criterion for criterion in seen if criterion in request.body["messages"][0]["content"][0]["text"]]
    return reply(f"This image contains a {seen[asked]} characterised by a {seen[asked]}, one {seen[asked]} and only a {seen[asked]}.")


def write_things(folder: Path) -> Path:
    """Write red and blue discs and squares, EACH of each kind."""
    folder.mkdir()
    for colour in ("red", "blue"):
        for shape in ("disc", "square"):
            for number in range(EACH):
                image = Image.new("RGB", (64, 64), "white")
                draw = ImageDraw.Draw(image)
                (draw.ellipse if shape == "disc" else draw.rectangle)((12, 12, 51 + number, 51 + number), fill=colour)
                image.save(folder / f"{colour}-{shape}-{number}.png")
    return folder


def test_two_criteria_cluster_one_corpus_by_colour_and_by_shape_and_share_the_encoding(tmp_path: Path, server: Server) -> None:
    folder = write_things(tmp_path / "in")

    def asking(criterion: str) -> PipelineConfig:
        describe = {"captioner": "openai:tiny", "url": server.url, "criterion": criterion}
        return settings(folder, tmp_path / "store", describe=describe, prototypes={"representatives": 0}, fuse={"text_weight": 0.9})

    made, questions = {}, {}
    for criterion, place in ((COLOUR, 0), (SHAPE, 1)):
        context, _, made[criterion] = cluster(asking(criterion))
        found = labels(context)
        assert adjusted_rand_score([uri.split("-")[place] for uri in found], list(found.values())) == 1
        questions[criterion] = dict(collect(context).asked)["question"]
    assert made[COLOUR]["describe"]["asked"] == made[SHAPE]["describe"]["asked"] == 4 * EACH
    assert not any(made[SHAPE][stage] for stage in ("encode", "baseline", "prototypes")), "these were done for the first criterion"
    assert all(criterion in question for criterion, question in questions.items())

    asked = len(server.asked)
    assert asked == 2 * 4 * EACH
    assert all(sums == {} for sums in cluster(asking(COLOUR))[2].values()), "with the first criterion again, everything is done already"
    assert len(server.asked) == asked
