"""The captioner openai:MODEL with a fake server on a real socket: its requests, and which replies count."""

import io
import struct
import threading
import zlib
from pathlib import Path

import pytest
from PIL import Image

from gsec_core.captioners import Answer, captioner_identity
from gsec_core.captioners.template import SENTENCE_PATTERN, prompt
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused
from gsec_core.sources.base import MissingImage
from gsec_core.tables import DESCRIBED, FAILED, FREE

from .examples import GOOD, describe, describe_all, encoded, png, subject
from .server import Request, Response, Server, captioner, error, reply

pytestmark = pytest.mark.usefixtures("quick")


def test_the_request_has_the_image_and_the_prompt_and_the_reply_becomes_the_answer(server: Server) -> None:
    answer = describe(captioner(server), subject())
    assert (answer.text, answer.object, answer.status) == (GOOD, "red bus", DESCRIBED)
    [request] = server.asked
    text, image = request.body["messages"][0]["content"]
    assert (request.path, request.body["model"], request.body["temperature"], request.body["max_tokens"]) == ("/v1/chat/completions", "tiny", 0, 96)
    assert answer.cost[:3] == (1, 30, 12)
    assert (text, image["type"], len(request.body["messages"])) == ({"type": "text", "text": prompt(None)}, "image_url", 1)
    assert "seed" not in request.body


def test_a_criterion_changes_the_prompt_and_the_identity(server: Server) -> None:
    describe(captioner(server, criterion="the kind of place"), subject())
    text = server.asked[0].body["messages"][0]["content"][0]["text"]
    assert text.startswith("Describe one aspect of this image and leave out all others: the kind of place. Answer with exactly one sentence")
    assert "For <object> name the kind of place, as exact" in text
    identities = [captioner_identity(DescribeConfig(captioner="openai:tiny", criterion=criterion)) for criterion in (None, "the kind of place", "the colour")]
    assert len({str(identity) for identity in identities}) == 3


@pytest.mark.parametrize(
    ("name", "criterion", "says"),
    [
        ("tagger", "the colour", "only a model can be asked, but describe.captioner = tagger is not a model"),
        ("openai:tiny", " ", "name one aspect on one line of at most 200 characters"),
        ("openai:tiny", "the colour\nof it", "name one aspect on one line of at most 200 characters"),
        ("openai:tiny", "x" * 201, "name one aspect on one line of at most 200 characters"),
    ],
)
def test_an_invalid_criterion_is_refused(name: str, criterion: str, says: str) -> None:
    with pytest.raises(Refused, match=rf"^describe\.criterion: {says}"):
        captioner_identity(DescribeConfig(captioner=name, criterion=criterion))


@pytest.mark.parametrize(("size", "sent"), [((40, 30), (40, 30)), ((1200, 300), (128, 32)), ((1, 5000), (16, 128)), ((2000, 5), (128, 16))])
def test_large_images_are_sent_smaller_small_ones_unchanged_and_stripes_with_a_white_border(
    server: Server, size: tuple[int, int], sent: tuple[int, int]
) -> None:
    describe(captioner(server, image_size=128), subject(png(size=size)))
    assert (server.asked[0].picture.format, server.asked[0].picture.size) == ("JPEG", sent)


def test_an_image_is_sent_as_a_viewer_shows_it(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    describe(captioner(server), subject(encoded(Image.new("RGBA", (30, 20), (255, 0, 0, 0)), exif=exif)))
    assert server.asked[0].picture.size == (20, 30)
    assert server.asked[0].picture.getpixel((0, 0)) == (255, 255, 255)


def test_files_that_cannot_be_decoded_fail_with_a_reason_and_do_not_disturb_others(server: Server) -> None:
    """All 64 are described at once; of an animation the first frame is sent."""
    header = io.BytesIO()
    Image.new("1", (1, 1)).save(header, "PNG")
    huge = bytearray(header.getvalue())
    huge[16:24] = struct.pack(">II", 20_000, 20_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    bad = {"corrupt.png": png()[:60], "huge.png": bytes(huge), "text.png": b"not an image", "empty.png": b""}
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    good = {"animated.gif": animated.getvalue(), "stripe.png": png(size=(2000, 5))} | {f"{number}.png": png((number, 9, 9)) for number in range(58)}
    subjects = [subject(data, uri) for uri, data in sorted((bad | good).items())]
    answers = dict(zip(sorted(bad | good), describe_all(captioner(server), subjects), strict=True))
    assert {answer.status for uri, answer in answers.items() if uri in good} == {DESCRIBED}
    assert {uri: answer.reason for uri, answer in answers.items() if answer.status == FAILED} == {
        "corrupt.png": "truncated or damaged, or a variant that cannot be decoded",
        "huge.png": "larger than 178 megapixels",
        "text.png": "not an image in a known format, or one with a damaged header",
        "empty.png": "empty file",
    }
    assert len(server.asked) == 60
    reds = [request.picture.convert("RGB").getpixel((5, 5)) for request in server.asked if request.picture.size == (20, 20)]
    assert [red > 200 > 50 > blue for red, _, blue in reds] == [True]  # type: ignore[misc]


def test_an_operators_own_template_is_used_and_has_its_own_identity(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("prompt = 'Which bus?'\npattern = 'This image contains (?P<object>.*?) characterised by (?P<attributes>.*)\\.'\n")
    answer = describe(captioner(server, template=str(file)), subject())
    assert (answer.object, answer.attributes[0]) == ("a red bus", "two decks")
    assert server.asked[0].body["messages"][0]["content"][0]["text"] == "Which bus?"
    identities = [captioner_identity(DescribeConfig(captioner="openai:tiny", template=template)) for template in (None, str(file))]
    assert identities[0] != identities[1]
    assert str(file) not in str(identities[1]), "the identity must depend on the template's content, not on its path"


def test_a_file_that_is_no_image_is_not_sent(server: Server) -> None:
    answer = describe(captioner(server), subject(b"no image"))
    assert (answer.status, server.requests) == (FAILED, [])
    assert "not an image" in (answer.reason or "")


def test_a_missing_image_is_an_error_for_the_caller(server: Server) -> None:
    def gone() -> bytes:
        raise MissingImage("the file is gone")

    with pytest.raises(MissingImage):
        describe(captioner(server), subject(gone))


def test_as_many_requests_are_under_way_as_the_setting_says_while_more_images_are_prepared(server: Server) -> None:
    together = threading.Barrier(4)
    server.answer = lambda request: reply() if request.is_plain or together.wait(60) >= 0 else error(500)
    asking = captioner(server, concurrency=4)
    assert asking.concurrency == 8
    assert {answer.status for answer in describe_all(asking, [subject(uri=str(number)) for number in range(24)])} == {DESCRIBED}
    assert server.most_at_once == 4


class TestUnsupportedParameters:
    """Newer models of OpenAI decline `max_tokens` and `temperature`, one after the other."""

    @pytest.mark.parametrize("said", ["{}", "litellm.BadRequestError: OpenAIException - {}"])
    def test_parameters_that_a_model_does_not_take_are_replaced_or_left_out(self, server: Server, said: str) -> None:
        def answer(request: Request) -> Response:
            if "max_tokens" in request.body:
                words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            elif "temperature" in request.body:
                words = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
            else:
                return reply()
            return error(400, said.format(words))

        server.answer = answer
        asking = captioner(server)
        asking.check()
        first, second = describe_all(asking, [subject(uri="a"), subject(uri="b")])
        assert (first.status, second.status) == (DESCRIBED, DESCRIBED)
        assert [request.body.get("max_completion_tokens") for request in server.asked] == [96, 96], "images must not be sent twice"

    def test_a_model_that_goes_on_declining_is_refused(self, server: Server) -> None:
        server.answer = lambda request: error(400, "Unsupported parameter: 'max_tokens' is not supported with this model.")
        with pytest.raises(Refused, match=r"declines every request \(400: Unsupported parameter: 'max_tokens'"):
            captioner(server).check()


class TestPattern:
    """Whether the server enforces the pattern of the template is found out by a trial request."""

    def test_a_server_that_enforces_a_pattern_gets_it_with_every_image(self, server: Server) -> None:
        server.probe = lambda request: reply(GOOD)
        asking = captioner(server)
        assert [describe(asking, subject()).status for _ in range(3)] == [DESCRIBED] * 3
        assert [request.pattern for request in server.asked] == [SENTENCE_PATTERN] * 3
        assert len(server.probes) == 1
        assert asking.form == "enforced by the server"

    @pytest.mark.parametrize(
        "response",
        [
            pytest.param(error(400, "structured_outputs: Extra inputs are not permitted"), id="declines it"),
            pytest.param(reply("A plain grey picture."), id="takes no notice"),
            pytest.param(reply(f"{GOOD} It is grey."), id="says more"),
            pytest.param(reply("Yes, it", finish="length"), id="takes no notice and is cut"),
            pytest.param(error(500, "no grammar backend"), id="fails at it"),
        ],
    )
    def test_a_server_that_does_not_enforce_a_pattern_gets_only_the_prompt(self, server: Server, response: Response) -> None:
        server.probe = lambda request: response
        asking = captioner(server)
        assert describe(asking, subject()).status == DESCRIBED
        assert [request.pattern for request in server.requests] == [None, None], "one request with a plain picture, and one with the image"
        assert asking.form.startswith("asked for by the prompt alone")

    def test_a_trial_reply_that_was_cut_counts_if_it_is_the_beginning_of_a_sentence(self, server: Server) -> None:
        server.probe = lambda request: reply(GOOD[:-20], finish="length")
        asking = captioner(server)
        asking.check()
        assert asking.form == "enforced by the server"

    def test_the_trial_request_is_repeated_if_the_server_is_busy(self, server: Server) -> None:
        responses = [error(503), error(503), reply(GOOD)]
        server.probe = lambda request: responses.pop(0)
        describe(captioner(server), subject())
        assert [request.pattern for request in server.asked] == [SENTENCE_PATTERN]

    def test_a_server_that_begins_to_decline_the_pattern_is_asked_without_it_and_no_image_fails(self, server: Server) -> None:
        server.probe = lambda request: reply(GOOD)
        asking = captioner(server)
        describe(asking, subject())
        server.probe = server_without = lambda request: error(400, "structured_outputs: Extra inputs are not permitted")
        server.answer = lambda request: server_without(request) if request.pattern else reply()
        assert describe(asking, subject()).status == DESCRIBED
        assert [request.pattern for request in server.asked] == [SENTENCE_PATTERN, SENTENCE_PATTERN, None]

    def test_the_identity_does_not_depend_on_whether_a_pattern_is_enforced(self) -> None:
        assert "pattern" not in str(captioner_identity(DescribeConfig(captioner="openai:tiny")))


class TestReplies:
    def test_a_reply_outside_the_template_is_asked_for_a_second_time(self, server: Server) -> None:
        server.says("A bus.", GOOD)
        assert describe(captioner(server), subject()).text == GOOD
        assert [request.body["temperature"] for request in server.asked] == [0, 0.7]

    def test_if_the_second_reply_is_outside_the_template_too_the_first_is_kept(self, server: Server) -> None:
        server.says("A bus.", "A red bus.", GOOD)
        assert describe(captioner(server), subject())[:5] == Answer("A bus.", None, (), FREE)[:5]

    def test_free_text_is_preferred_to_a_refusal(self, server: Server) -> None:
        server.says("I'm sorry, I can't.", "A bus.")
        assert describe(captioner(server), subject())[:5] == Answer("A bus.", None, (), FREE)[:5]

    @pytest.mark.parametrize(
        ("response", "reason"),
        [
            (reply(""), "the description is empty"),
            (reply(None), "the description is empty"),
            (reply("I cannot help with that."), "the description is a refusal: I cannot help with that."),
            (reply(None, refusal="Not\nthis."), "the model refuses: Not this."),
            (reply("This", finish="content_filter"), "the server's content filter held the reply back"),
            (reply(None, finish="length"), "the description is empty, and cut at describe.max_tokens = 96"),
        ],
    )
    def test_two_refusals_or_empty_replies_are_a_failure(self, server: Server, response: Response, reason: str) -> None:
        server.says(response)
        assert describe(captioner(server), subject())[:5] == Answer(None, None, (), FAILED, reason)[:5]
        assert len(server.asked) == 2

    def test_a_reply_in_parts_is_read(self, server: Server) -> None:
        server.says(reply([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": GOOD[:20]}, {"type": "text", "text": GOOD[20:]}]))
        assert describe(captioner(server), subject()).text == GOOD

    def test_a_sentence_that_was_cut_counts_as_free_text(self, server: Server) -> None:
        server.says(reply(GOOD[:-9], finish="length"))
        assert describe(captioner(server), subject())[:5] == Answer(GOOD[:-9], None, (), FREE)[:5]
        assert len(server.asked) == 2

    def test_a_reply_that_was_cut_after_the_sentence_counts_as_described(self, server: Server) -> None:
        server.says(reply(f"{GOOD} The background is", finish="length"))
        assert describe(captioner(server), subject()).text == GOOD
        assert len(server.asked) == 1
