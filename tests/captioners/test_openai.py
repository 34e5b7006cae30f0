"""The client against a server on a real socket that behaves and misbehaves."""

import io
import logging
import struct
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gsec_core.captioners import Answer, Captioner, background, captioner_identity, load_captioner, pool
from gsec_core.captioners.template import SENTENCE_PATTERN, prompt
from gsec_core.config import DescribeConfig
from gsec_core.errors import GsecError, Refused
from gsec_core.sources.base import MissingImage
from gsec_core.tables import DESCRIBED, FAILED, FREE

from .examples import GOOD, describe, describe_all, encoded, png, subject
from .server import GONE, Request, Response, Server, as_json, error, reply

SECRET = "sk-4f9a8b7c6d5e"
OTHER_SECRET = "sk-of-another-service"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(pool, "LONGEST_WAIT", 0.05)


def captioner(*servers: Server, **settings: Any) -> Captioner:
    settings = {"url": ",".join(server.url for server in servers), "patience": 0.3, **settings}
    return load_captioner(DescribeConfig(captioner="openai:tiny", **settings), device="cpu", threads=1)


def fails_at_images(response: Response) -> Any:
    """As ``response``, but a plain picture is described."""
    return lambda request: reply() if request.is_plain else response


def test_an_image_is_described(server: Server) -> None:
    answer = describe(captioner(server), subject())
    assert (answer.text, answer.object, answer.status) == (GOOD, "red bus", DESCRIBED)
    [request] = server.asked
    text, image = request.body["messages"][0]["content"]
    assert (request.path, request.body["model"], request.body["temperature"], request.body["max_tokens"]) == ("/v1/chat/completions", "tiny", 0, 96)
    assert answer.cost[:3] == (1, 30, 12)
    assert (text, image["type"], len(request.body["messages"])) == ({"type": "text", "text": prompt(None)}, "image_url", 1)
    assert "seed" not in request.body


def test_a_criterion_is_what_is_asked_about_and_makes_answers_of_its_own(server: Server) -> None:
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
def test_a_criterion_that_cannot_be_asked_about_is_refused(name: str, criterion: str, says: str) -> None:
    with pytest.raises(Refused, match=rf"^describe\.criterion: {says}"):
        captioner_identity(DescribeConfig(captioner=name, criterion=criterion))


@pytest.mark.parametrize(("size", "sent"), [((40, 30), (40, 30)), ((1200, 300), (128, 32)), ((1, 5000), (16, 128)), ((2000, 5), (128, 16))])
def test_a_large_image_is_sent_smaller_a_small_one_as_it_is_and_a_stripe_with_white_beside_it(
    server: Server, size: tuple[int, int], sent: tuple[int, int]
) -> None:
    describe(captioner(server, image_size=128), subject(png(size=size)))
    assert (server.asked[0].picture.format, server.asked[0].picture.size) == ("JPEG", sent)


def test_an_image_is_sent_as_a_viewer_shows_it(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    describe(captioner(server), subject(encoded(Image.new("RGBA", (30, 20), (255, 0, 0, 0)), exif=exif)))
    assert server.asked[0].picture.size == (20, 30)
    assert server.asked[0].picture.getpixel((0, 0)) == (255, 255, 255)


def test_files_that_cannot_be_decoded_are_rows_with_reasons_among_the_others(server: Server) -> None:
    """As many as that, in one pass; an animation counts by its first frame."""
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


def test_an_operators_own_template_is_asked_and_is_an_identity_of_its_own(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("prompt = 'Which bus?'\npattern = 'This image contains (?P<object>.*?) characterised by (?P<attributes>.*)\\.'\n")
    answer = describe(captioner(server, template=str(file)), subject())
    assert (answer.object, answer.attributes[0]) == ("a red bus", "two decks")
    assert server.asked[0].body["messages"][0]["content"][0]["text"] == "Which bus?"
    identities = [captioner_identity(DescribeConfig(captioner="openai:tiny", template=template)) for template in (None, str(file))]
    assert identities[0] != identities[1]
    assert str(file) not in str(identities[1]), "what it says counts, not where it is"


def test_what_is_no_image_is_not_asked_about(server: Server) -> None:
    answer = describe(captioner(server), subject(b"no image"))
    assert (answer.status, server.requests) == (FAILED, [])
    assert "not an image" in (answer.reason or "")


def test_an_image_that_is_gone_is_the_callers_affair(server: Server) -> None:
    def gone() -> bytes:
        raise MissingImage("the file is gone")

    with pytest.raises(MissingImage):
        describe(captioner(server), subject(gone))


def test_as_many_requests_are_under_way_as_the_setting_says_and_images_are_made_ready_meanwhile(server: Server) -> None:
    together = threading.Barrier(4)
    server.answer = lambda request: reply() if request.is_plain or together.wait(10) >= 0 else error(500)
    asking = captioner(server, concurrency=4)
    assert asking.concurrency == 8
    assert {answer.status for answer in describe_all(asking, [subject(uri=str(number)) for number in range(24)])} == {DESCRIBED}
    assert server.most_at_once == 4


class TestPattern:
    """Whether the server holds replies to the template is found out, not believed."""

    def test_a_server_that_holds_replies_to_a_pattern_is_given_it_with_every_image(self, server: Server) -> None:
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
    def test_one_that_does_not_is_asked_by_the_prompt_alone(self, server: Server, response: Response) -> None:
        server.probe = lambda request: response
        asking = captioner(server)
        assert describe(asking, subject()).status == DESCRIBED
        assert [request.pattern for request in server.requests] == [None, None], "a plain picture, and the image"
        assert asking.form.startswith("asked for by the prompt alone")

    def test_a_reply_to_the_question_that_was_cut_may_be_the_beginning_of_a_sentence(self, server: Server) -> None:
        server.probe = lambda request: reply(GOOD[:-20], finish="length")
        asking = captioner(server)
        asking.check()
        assert asking.form == "enforced by the server"

    def test_one_that_is_busy_when_it_is_asked_is_asked_again(self, server: Server) -> None:
        responses = [error(503), error(503), reply(GOOD)]
        server.probe = lambda request: responses.pop(0)
        describe(captioner(server), subject())
        assert [request.pattern for request in server.asked] == [SENTENCE_PATTERN]

    def test_one_that_declines_the_pattern_from_now_on_is_asked_without_and_no_image_is_blamed(self, server: Server) -> None:
        server.probe = lambda request: reply(GOOD)
        asking = captioner(server)
        describe(asking, subject())
        server.probe = server_without = lambda request: error(400, "structured_outputs: Extra inputs are not permitted")
        server.answer = lambda request: server_without(request) if request.pattern else reply()
        assert describe(asking, subject()).status == DESCRIBED
        assert [request.pattern for request in server.asked] == [SENTENCE_PATTERN, SENTENCE_PATTERN, None]

    def test_how_replies_are_held_makes_no_other_answers(self) -> None:
        assert "pattern" not in str(captioner_identity(DescribeConfig(captioner="openai:tiny")))


class TestReplies:
    def test_one_outside_the_template_is_asked_for_once_more(self, server: Server) -> None:
        server.says("A bus.", GOOD)
        assert describe(captioner(server), subject()).text == GOOD
        assert [request.body["temperature"] for request in server.asked] == [0, 0.7]

    def test_then_the_first_is_kept(self, server: Server) -> None:
        server.says("A bus.", "A red bus.", GOOD)
        assert describe(captioner(server), subject())[:5] == Answer("A bus.", None, (), FREE)[:5]

    def test_some_text_goes_before_none(self, server: Server) -> None:
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
    def test_a_refusal_or_nothing_twice_is_a_failure(self, server: Server, response: Response, reason: str) -> None:
        server.says(response)
        assert describe(captioner(server), subject())[:5] == Answer(None, None, (), FAILED, reason)[:5]
        assert len(server.asked) == 2

    def test_a_cut_sentence_is_text_only(self, server: Server) -> None:
        server.says(reply(GOOD[:-9], finish="length"))
        assert describe(captioner(server), subject())[:5] == Answer(GOOD[:-9], None, (), FREE)[:5]
        assert len(server.asked) == 2

    def test_a_reply_cut_after_the_sentence_counts(self, server: Server) -> None:
        server.says(reply(f"{GOOD} The background is", finish="length"))
        assert describe(captioner(server), subject()).text == GOOD
        assert len(server.asked) == 1


DEEP = Response(200, b"[" * 100_000 + b"]" * 100_000, {"Content-Type": "application/json"})
"""JSON, which no parser likes."""


class TestErrors:
    """The table of `servers`, row by row."""

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_what_the_server_declines_while_it_answers_others_is_a_failure_at_once(self, server: Server, status: int) -> None:
        server.says(error(status, "too\n many pixels"))
        assert describe(captioner(server), subject())[:5] == (None, None, (), FAILED, f"{status}: too many pixels")
        assert len(server.asked) == 1

    def test_what_the_server_declines_as_it_declines_all_is_refused(self, server: Server) -> None:
        asking = captioner(server)
        describe(asking, subject())
        server.answer = lambda request: error(400, "At most 0 image(s) may be provided")
        with pytest.raises(Refused, match=r"declines every request \(400: At most 0"):
            describe(asking, subject())

    @pytest.mark.parametrize(("status", "words"), [(401, "GSEC_CAPTIONER_KEY"), (403, "GSEC_CAPTIONER_KEY"), (404, "no model tiny"), (405, "not accept such")])
    def test_what_is_set_wrong_is_refused_at_once(self, server: Server, status: int, words: str) -> None:
        server.says(error(status))
        with pytest.raises(Refused, match=rf"^describe\.url = .*{words}"):
            describe(captioner(server), subject())
        assert len(server.asked) == 1

    @pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
    def test_what_passes_is_tried_again(self, server: Server, status: int) -> None:
        server.says(error(status), GOOD)
        assert describe(captioner(server), subject()).status == DESCRIBED
        assert len(server.asked) == 2

    @pytest.mark.parametrize("status", [408, 409, 429, 503])
    def test_a_server_that_stays_busy_ends_it_after_the_patience(self, server: Server, status: int) -> None:
        server.says(error(status, "queue full"))
        started = time.monotonic()
        with pytest.raises(GsecError, match=rf"^describe\.url = .* answers {status}: queue full, for describe\.patience = 0\.3 s\. All answers are kept"):
            describe(captioner(server), subject())
        assert 0.3 < time.monotonic() - started < 3
        assert 3 < len(server.asked) < 40, "after waits that grow"

    def test_a_busy_server_that_names_a_time_is_left_alone_until_then(self, server: Server) -> None:
        server.says(Response(503, b"", {"Retry-After": "1"}), GOOD)
        started = time.monotonic()
        assert describe(captioner(server, patience=10), subject()).status == DESCRIBED
        assert time.monotonic() - started > 1

    @pytest.mark.parametrize(
        "response", [error(500, "boom"), error(502), Response(200, b"<html>", {"Content-Type": "text/html"}), as_json({"choices": []}), DEEP]
    )
    def test_a_fault_at_one_image_of_a_healthy_server_is_a_failure_the_third_time(self, server: Server, response: Response) -> None:
        server.says(response)
        answer = describe(captioner(server), subject())
        assert answer.status == FAILED
        assert "the server fails at this, though not at others: " in (answer.reason or "")
        plain_or_not = [request.is_plain for request in server.requests]
        assert plain_or_not == [True, False, True, False, True, False, True]

    @pytest.mark.parametrize(
        "response",
        [
            error(500, "EngineCore died"),
            Response(200, b"{torn", {"Content-Type": "application/json"}),
            Response(200, b"\xff\xfe", {"Content-Type": "application/json"}),
            Response(200, b"<html>", {"Content-Type": "text/html"}),
            Response(200, b""),
            as_json([]),
            as_json(None),
            as_json({}),
            as_json({"choices": None}),
            as_json({"choices": [None]}),
            as_json({"choices": [{"message": "text"}]}),
        ],
    )
    def test_a_fault_at_every_image_ends_it_after_the_patience(self, server: Server, response: Response) -> None:
        server.answer = lambda request: response
        with pytest.raises(
            GsecError, match=r"^describe\.url = .*: no server answers, for describe\.patience = 0\.3 s \(it fails at every request \(.+\)\)\."
        ) as raised:
            describe(captioner(server), subject())
        assert raised.value.exit_code == 1

    def test_a_fault_that_is_over_when_the_server_is_looked_at_is_forgotten(self, server: Server) -> None:
        server.says(error(500), error(500), GOOD)
        assert describe(captioner(server), subject()).status == DESCRIBED

    def test_a_server_that_stays_gone_ends_it_after_the_patience(self) -> None:
        with Server() as server:
            lost = captioner(server)
        with pytest.raises(GsecError, match=r"^describe\.url = .*: no server answers, .* \(the server does not answer \(.+\)\)\."):
            describe(lost, subject())

    def test_a_server_that_comes_late_is_waited_for(self) -> None:
        with Server() as first:
            late = captioner(first, patience=30)
        asked = [background.start(late.describe(subject(uri=str(number)))) for number in range(5)]
        assert not wait(asked, timeout=0.3).done
        with Server(first.port) as server:
            assert [future.result(10).status for future in asked] == [DESCRIBED] * 5
            assert len(server.asked) == 5

    def test_a_server_that_ends_and_still_calls_itself_healthy_is_not_believed(self, server: Server) -> None:
        """vLLM, told to end, answers 200 about its health and 500 to every request."""
        ended = threading.Event()
        server.answer = lambda request: reply() if ended.is_set() else error(500, "EngineCore died")
        future = background.start(captioner(server, patience=30).describe(subject()))
        assert not wait([future], timeout=0.3).done
        ended.set()
        assert future.result(10).status == DESCRIBED

    def test_one_that_comes_back_with_another_model_is_refused(self, server: Server) -> None:
        asking = captioner(server, patience=30)
        describe(asking, subject())
        server.healthy, server.answer = False, lambda request: error(404, "no such model") if server.healthy else error(503)
        future = background.start(asking.describe(subject()))
        assert not wait([future], timeout=0.3).done
        server.healthy = True
        with pytest.raises(Refused, match="has no model tiny"):
            future.result(10)

    def test_a_connection_that_breaks_is_tried_again(self, server: Server) -> None:
        server.says(Response(200, b"{", {"Content-Type": "application/json", "Content-Length": "1000", "Connection": "close"}), GONE, GOOD)
        assert describe(captioner(server), subject()).status == DESCRIBED

    def test_an_image_that_the_server_is_lost_at_each_time_is_asked_about_alone_and_then_to_blame(self, server: Server) -> None:
        """Nothing that was under way with it is blamed, and nothing is under way with it when it is."""
        at_once: list[int] = []

        def answer(request: Request) -> Response:
            if request.is_plain:
                return reply()
            if request.picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255):
                at_once.append(server.at_once)
                return GONE
            time.sleep(0.01)
            return reply()

        server.answer = answer
        pictures = [subject(png("white"), uri="fatal"), *(subject(uri=str(number)) for number in range(40))]
        fatal, *others = describe_all(captioner(server, concurrency=8, patience=30), pictures)
        assert (fatal.status, {answer.status for answer in others}) == (FAILED, {DESCRIBED})
        assert "silent or gone 3 times when this was asked, at last alone" in (fatal.reason or "")
        assert (len(at_once), at_once[-1]) == (3, 1)

    def test_an_image_at_which_the_server_hangs_is_a_failure_the_third_time(self, server: Server) -> None:
        awake = threading.Event()
        server.answer = lambda request: reply() if request.is_plain or awake.wait(10) else error(500)
        answer = describe(captioner(server, timeout=0.2), subject())
        awake.set()
        assert answer.status == FAILED
        assert answer.reason == "silent or gone 3 times when this was asked, at last alone: the server does not answer: timed out"

    def test_a_server_that_is_only_slow_is_asked_less_at_once_and_no_image_is_blamed(self, server: Server) -> None:
        """It shares its strength among the requests under way, so that too many take longer than the timeout, all of them."""

        def answer(request: Request) -> Response:
            time.sleep(0.03 * server.at_once)
            return reply()

        server.answer = answer
        answers = describe_all(captioner(server, concurrency=32, timeout=0.5, patience=30), [subject(uri=str(number)) for number in range(60)])
        assert {answer.status for answer in answers} == {DESCRIBED}

    def test_a_server_that_takes_few_at_once_is_asked_few_at_once(self, server: Server) -> None:
        def answer(request: Request) -> Response:
            if not request.is_plain and server.at_once > 3:
                return error(503, "queue full")
            time.sleep(0.01)
            return reply()

        server.answer = answer
        answers = describe_all(captioner(server, concurrency=64, patience=1), [subject(uri=str(number)) for number in range(150)])
        assert {answer.status for answer in answers} == {DESCRIBED}

    def test_a_reply_that_drips_is_not_waited_for_longer_than_the_timeout(self, server: Server) -> None:
        server.answer = lambda request: reply() if request.is_plain else reply()._replace(drip=0.05)
        started = time.monotonic()
        answer = describe(captioner(server, timeout=0.3), subject())
        assert (answer.status, time.monotonic() - started < 5) == (FAILED, True)

    @pytest.mark.parametrize("tokens", ["many", 2**40, None, -1])
    def test_odd_counts_of_tokens_are_none(self, server: Server, tokens: object) -> None:
        server.says(reply(prompt_tokens=tokens))
        answer = describe(captioner(server), subject())
        assert answer.cost is not None
        assert answer.cost[:3] == (1, 0, 12)

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirect_is_refused_and_the_other_host_asked_nothing(self, server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        with Server() as other:
            moved = Response(status, b"", {"Location": f"{other.url}/chat/completions"})
            server.models = server.answer = lambda request: moved
            for ask in (lambda: describe(captioner(server), subject()), captioner(server).check):
                with pytest.raises(Refused, match=rf"^describe\.url = .*redirects to another address \({status}\)"):
                    ask()
            assert other.requests == []


class TestReplicas:
    @pytest.fixture
    def other(self) -> Iterator[Server]:
        with Server() as running:
            yield running

    def test_they_share_the_work(self, server: Server, other: Server) -> None:
        for replica in (server, other):
            replica.answer = lambda request: time.sleep(0.01) or reply()
        asking = captioner(server, other, concurrency=2)
        assert asking.concurrency == 8
        assert {answer.status for answer in describe_all(asking, [subject(uri=str(number)) for number in range(40)])} == {DESCRIBED}
        assert len(server.asked) + len(other.asked) == 40
        assert min(len(server.asked), len(other.asked)) > 10

    def test_one_that_is_not_there_is_done_without_and_named(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        with Server() as dead:
            asking = captioner(dead, server, concurrency=2)
        asking.check()
        assert f'describe.url = "{dead.url}": the server does not answer' in caplog.text
        assert {answer.status for answer in describe_all(asking, [subject(uri=str(number)) for number in range(20)])} == {DESCRIBED}
        assert len(server.asked) == 20

    def test_those_that_are_not_there_blame_no_image(self, server: Server) -> None:
        with Server() as one, Server() as two, Server() as three:
            dead = [one, two, three]
        assert describe(captioner(*dead, server), subject()).status == DESCRIBED

    def test_none_that_is_there_is_refused_with_the_reason_of_each(self) -> None:
        with Server() as one, Server() as two:
            asking = captioner(one, two)
        with pytest.raises(Refused, match=rf"{one.port}.*does not answer.*{two.port}.*does not answer.*Start the server"):
            asking.check()

    def test_one_that_dies_is_done_without_and_used_again_when_it_is_back(self, server: Server) -> None:
        dying = Server()
        asking = captioner(server, dying, concurrency=2, patience=30)
        server.answer = lambda request: time.sleep(0.02) or reply()
        with dying:
            dying.says(reply(), reply(), reply(), GONE)
            futures = [background.start(asking.describe(subject(uri=str(number)))) for number in range(200)]
            while len(dying.asked) < 4:
                time.sleep(0.01)
        with Server(dying.port) as back:
            assert {future.result(30).status for future in futures} == {DESCRIBED}
            assert back.asked
        answered = len(server.asked) + 3 + len(back.asked)
        assert answered == 200, "what was under way when it died was asked again, and nothing else"

    def test_one_that_is_set_wrong_stops_at_once(self, server: Server, other: Server) -> None:
        other.answer = lambda request: error(401)
        with pytest.raises(Refused, match=rf"{other.port}.*does not accept"):
            captioner(server, other).check()
        with pytest.raises(Refused, match=rf"{other.port}.*does not accept"):
            describe_all(captioner(server, other, concurrency=1), [subject(uri=str(number)) for number in range(4)])


class TestCheck:
    def test_a_server_that_is_ready_passes(self, server: Server) -> None:
        captioner(server, image_size=64).check()
        assert [request.path for request in server.requests] == ["/v1/models", "/v1/chat/completions"]
        assert server.requests[1].is_plain
        assert server.requests[1].picture.size == (64, 64)

    def test_a_server_that_is_not_there_is_refused(self) -> None:
        with Server() as server:
            lost = captioner(server)
        with pytest.raises(Refused, match=r"^describe\.url = .*does not answer .*Start the server, or correct the address\.$"):
            lost.check()

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_wrong_key_is_refused(self, server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
        server.models = lambda request: error(status, f"bad key: {request.headers['authorization']}")
        with pytest.raises(Refused, match=r"does not accept requests without a key; put it into GSEC_CAPTIONER_KEY"):
            captioner(server).check()
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        with pytest.raises(Refused, match=rf"^describe\.url = .*does not accept the key in GSEC_CAPTIONER_KEY \({status}: bad key: Bearer \*\*\*\)\.$"):
            captioner(server).check()

    def test_a_model_that_is_not_served_is_refused_and_those_named_that_are(self, server: Server) -> None:
        server.models = lambda request: as_json({"object": "list", "data": [{"id": "a/b"}, {"id": "c"}]})
        with pytest.raises(Refused, match=r'^describe\.captioner = "openai:tiny": http.* has no such model; its models are: a/b, c\.$'):
            captioner(server).check()

    @pytest.mark.parametrize(
        "response", [error(404), error(500), error(400), Response(200, b"<html>", {"Content-Type": "text/html"}), as_json({"data": "x"}), as_json([])]
    )
    def test_an_address_of_something_else_is_refused(self, server: Server, response: Response) -> None:
        server.models = lambda request: response
        with pytest.raises(Refused, match=r"^describe\.url = .*usually ends in /v1"):
            captioner(server).check()

    def test_a_model_that_takes_no_image_is_refused_before_any_image_fails(self, server: Server) -> None:
        server.answer = lambda request: error(400, "At most 0 image(s) may be provided")
        with pytest.raises(
            Refused, match=r'^describe\.captioner = "openai:tiny": http.* declines every request \(400: At most 0 .*Name a model that reads images'
        ):
            captioner(server).check()

    def test_a_server_that_fails_at_any_image_is_refused(self, server: Server) -> None:
        server.answer = lambda request: error(500, "EngineCore died")
        with pytest.raises(Refused, match=r"^describe\.url = .*: 500: EngineCore died\. Start the server"):
            captioner(server).check()

    @pytest.mark.parametrize(
        "url",
        [
            "localhost:8000",
            "ftp://host/v1",
            "http:///v1",
            f"http://me:{SECRET}@host/v1",
            f"http://host/v1?key={SECRET}",
            "http://host:port/v1",
            "http://[host/v1",
        ],
    )
    def test_an_address_that_cannot_be_one_is_refused_and_not_shown(self, url: str) -> None:
        config = DescribeConfig(captioner="openai:tiny", url=url)
        for use in (captioner_identity, lambda config: load_captioner(config, device="cpu", threads=1)):
            with pytest.raises(Refused, match=r"^describe\.url: give an address such as http://HOST:PORT/v1") as refused:
                use(config)
            assert SECRET not in str(refused.value)


class TestKey:
    def test_it_is_sent_to_the_server_and_nothing_that_is_meant_for_another(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", f" {SECRET}\n")
        for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
            monkeypatch.setenv(name, OTHER_SECRET)
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {OTHER_SECRET}\nX-Key: {OTHER_SECRET}")
        asking = captioner(server)
        asking.check()
        describe(asking, subject())
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {SECRET}"}
        assert OTHER_SECRET not in str(server.requests)

    def test_without_one_nothing_of_another_service_is_sent(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GSEC_CAPTIONER_KEY", raising=False)
        monkeypatch.setenv("OPENAI_API_KEY", OTHER_SECRET)
        describe(captioner(server), subject())
        assert server.asked[0].headers["authorization"] == "Bearer none"

    def test_a_server_that_repeats_it_is_not_quoted(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        server.says(reply(f"A bus with {SECRET} on it."))
        assert describe(captioner(server), subject()).text == "A bus with *** on it."
        server.models = lambda request: as_json({"object": "list", "data": [{"id": SECRET}]})
        with pytest.raises(Refused, match=r"its models are: \*\*\*\."):
            captioner(server).check()

    def test_no_proxy_of_the_environment_sees_it(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        with Server() as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            assert describe(captioner(server), subject()).status == DESCRIBED
            assert proxy.requests == []

    @pytest.mark.parametrize("key", [f"{SECRET}\n{SECRET}", f"{SECRET}é"])
    def test_one_that_cannot_be_sent_is_refused_and_not_shown(self, server: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", key)
        with pytest.raises(Refused, match=r"^GSEC_CAPTIONER_KEY: the key contains") as refused:
            captioner(server)
        assert SECRET not in str(refused.value)

    def test_it_is_in_no_log_no_error_and_no_answer(self, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        caplog.set_level(logging.DEBUG)
        asking = captioner(server)
        said = [repr(asking), repr(vars(asking)), repr(vars(vars(asking)["_chat"])), *(repr(server._client) for server in vars(asking)["_chat"]._servers)]

        def echo(status: int) -> Any:
            return lambda request: error(status, f"{'x' * 180} {request.headers['authorization']}")

        for status in (400, 401, 404, 429, 500, 502):
            server.answer = server.models = echo(status)
            for ask in (lambda: describe(asking, subject()), asking.check):
                try:
                    said.append(str(ask()))
                except GsecError:
                    said.append(traceback.format_exc())
        assert len(said) == 16
        assert "***" in str(said)
        for text in (*said, caplog.text):
            assert SECRET[:8] not in text
