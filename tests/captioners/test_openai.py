"""The client against a server on a real socket that behaves and misbehaves."""

import logging
import threading
import time
import traceback
from typing import Any

import pytest
from PIL import Image

from gsec_core.captioners import Answer, Captioner, captioner_identity, chat, load_captioner
from gsec_core.captioners.template import SENTENCE_PATTERN, prompt
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused, Unreachable
from gsec_core.sources.base import MissingImage
from gsec_core.tables import DESCRIBED, FAILED, FREE

from .examples import GOOD, encoded, png, subject
from .server import Response, Server, as_json, error, reply

SECRET = "sk-4f9a8b7c6d5e"
OTHER_SECRET = "sk-of-another-service"


@pytest.fixture(autouse=True)
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RETRIES", 1)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def captioner(server: Server, **settings: Any) -> Captioner:
    return load_captioner(DescribeConfig(captioner="openai:tiny", url=server.url, **settings), device="cpu", threads=1)


def fails_at_images(response: Response) -> Any:
    """As ``response``, but a plain picture is described."""
    return lambda request: reply() if request.is_plain else response


def test_an_image_is_described(server: Server) -> None:
    answer = captioner(server).describe(subject())
    assert (answer.text, answer.object, answer.status) == (GOOD, "red bus", DESCRIBED)
    [request] = server.requests
    text, image = request.body["messages"][0]["content"]
    assert (request.path, request.body["model"], request.body["temperature"], request.body["max_tokens"]) == ("/v1/chat/completions", "tiny", 0, 96)
    assert (text, image["type"], len(request.body["messages"])) == ({"type": "text", "text": prompt(None)}, "image_url", 1)
    assert "seed" not in request.body


def test_a_criterion_is_what_is_asked_about_and_makes_answers_of_its_own(server: Server) -> None:
    captioner(server, criterion="the kind of place").describe(subject())
    text = server.requests[0].body["messages"][0]["content"][0]["text"]
    assert text.startswith("Describe one aspect of this image and leave out all others: the kind of place. Answer with exactly one sentence")
    assert "For <object> name the kind of place, as exact" in text
    identities = [captioner_identity(DescribeConfig(captioner="openai:tiny", criterion=criterion)) for criterion in (None, "the kind of place", "the colour")]
    assert len({str(identity) for identity in identities}) == 3


@pytest.mark.parametrize(
    ("name", "criterion", "says"),
    [
        ("tagger", "the colour", "only a model can be asked about one aspect, and describe.captioner = tagger is none"),
        ("openai:tiny", " ", "name one aspect on one line of at most 200 characters"),
        ("openai:tiny", "the colour\nof it", "name one aspect on one line of at most 200 characters"),
        ("openai:tiny", "x" * 201, "name one aspect on one line of at most 200 characters"),
    ],
)
def test_a_criterion_that_cannot_be_asked_about_is_refused(name: str, criterion: str, says: str) -> None:
    with pytest.raises(Refused, match=rf"^describe\.criterion: {says}"):
        captioner_identity(DescribeConfig(captioner=name, criterion=criterion))


@pytest.mark.parametrize(("size", "sent"), [((40, 30), (40, 30)), ((1200, 300), (128, 32)), ((1, 5000), (1, 128))])
def test_a_large_image_is_sent_smaller_and_a_small_one_as_it_is(server: Server, size: tuple[int, int], sent: tuple[int, int]) -> None:
    captioner(server, image_size=128).describe(subject(png(size=size)))
    assert (server.requests[0].picture.format, server.requests[0].picture.size) == ("JPEG", sent)


def test_an_image_is_sent_as_a_viewer_shows_it(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    captioner(server).describe(subject(encoded(Image.new("RGBA", (30, 20), (255, 0, 0, 0)), exif=exif)))
    assert server.requests[0].picture.size == (20, 30)
    assert server.requests[0].picture.getpixel((0, 0)) == (255, 255, 255)


def test_what_is_no_image_is_not_asked_about(server: Server) -> None:
    answer = captioner(server).describe(subject(b"no image"))
    assert (answer.status, server.requests) == (FAILED, [])
    assert "not an image" in (answer.reason or "")


def test_an_image_that_is_gone_is_the_callers_affair(server: Server) -> None:
    def gone() -> bytes:
        raise MissingImage("the file is gone")

    with pytest.raises(MissingImage):
        captioner(server).describe(subject(gone))


def test_many_threads_share_a_captioner(server: Server) -> None:
    shared, answers = captioner(server, concurrency=8), []
    threads = [threading.Thread(target=lambda: answers.append(shared.describe(subject()).status)) for _ in range(shared.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [DESCRIBED] * 8


class TestPattern:
    """Whether the server holds replies to the template is found out, not believed."""

    def test_a_server_that_holds_replies_to_a_pattern_is_given_it_with_every_image(self, server: Server) -> None:
        server.probe = lambda request: reply(GOOD)
        asking = captioner(server)
        assert [asking.describe(subject()).status for _ in range(3)] == [DESCRIBED] * 3
        assert [request.pattern for request in server.asked] == [SENTENCE_PATTERN] * 3
        assert len(server.probes) == 1
        assert asking.form == "held to the template by the server"

    @pytest.mark.parametrize(
        "response",
        [
            pytest.param(error(400, "structured_outputs: Extra inputs are not permitted"), id="declines it"),
            pytest.param(reply("A plain grey picture."), id="takes no notice"),
            pytest.param(reply(f"{GOOD} It is grey."), id="says more"),
            pytest.param(error(500, "no grammar backend"), id="fails at it"),
        ],
    )
    def test_one_that_does_not_is_asked_by_the_prompt_alone(self, server: Server, response: Response) -> None:
        server.probe = lambda request: response
        asking = captioner(server)
        assert asking.describe(subject()).status == DESCRIBED
        assert [request.pattern for request in server.requests] == [None]
        assert asking.form.startswith("by the prompt alone")

    def test_one_that_is_not_there_when_it_is_asked_is_asked_again(self, server: Server) -> None:
        asking = captioner(server)
        server.probe = lambda request: error(503)
        with pytest.raises(Unreachable):
            asking.describe(subject())
        server.probe = lambda request: reply(GOOD)
        asking.describe(subject())
        assert [request.pattern for request in server.asked] == [SENTENCE_PATTERN]

    def test_how_replies_are_held_makes_no_other_answers(self) -> None:
        assert "pattern" not in str(captioner_identity(DescribeConfig(captioner="openai:tiny")))


class TestReplies:
    def test_one_outside_the_template_is_asked_for_once_more(self, server: Server) -> None:
        server.says("A bus.", GOOD)
        assert captioner(server).describe(subject()).text == GOOD
        assert [request.body["temperature"] for request in server.asked] == [0, 0.7]

    def test_then_the_first_is_kept(self, server: Server) -> None:
        server.says("A bus.", "A red bus.", GOOD)
        assert captioner(server).describe(subject()) == Answer("A bus.", None, (), FREE)

    def test_some_text_goes_before_none(self, server: Server) -> None:
        server.says("I'm sorry, I can't.", "A bus.")
        assert captioner(server).describe(subject()) == Answer("A bus.", None, (), FREE)

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
        assert captioner(server).describe(subject()) == Answer(None, None, (), FAILED, reason)
        assert len(server.requests) == 2

    def test_a_cut_sentence_is_text_only(self, server: Server) -> None:
        server.says(reply(GOOD[:-9], finish="length"))
        assert captioner(server).describe(subject()) == Answer(GOOD[:-9], None, (), FREE)
        assert len(server.requests) == 2

    def test_a_reply_cut_after_the_sentence_counts(self, server: Server) -> None:
        server.says(reply(f"{GOOD} The background is", finish="length"))
        assert captioner(server).describe(subject()).text == GOOD
        assert len(server.requests) == 1


class TestErrors:
    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_what_the_server_declines_is_a_failure_at_once(self, server: Server, status: int) -> None:
        server.answer = fails_at_images(error(status, "too\n many pixels"))
        assert captioner(server).describe(subject()) == Answer(None, None, (), FAILED, f"{status}: too many pixels")
        assert len(server.requests) == 1

    @pytest.mark.parametrize(("status", "words"), [(401, "GSEC_CAPTIONER_KEY"), (403, "GSEC_CAPTIONER_KEY"), (404, "no model tiny"), (405, "takes no such")])
    def test_what_the_server_declines_for_every_image_is_refused(self, server: Server, status: int, words: str) -> None:
        server.says(error(status))
        with pytest.raises(Refused, match=rf"^describe\.url = .*{words}"):
            captioner(server).describe(subject())
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
    def test_what_passes_is_tried_again(self, server: Server, status: int) -> None:
        server.says(error(status), GOOD)
        assert captioner(server).describe(subject()).status == DESCRIBED
        assert len(server.requests) == 2

    @pytest.mark.parametrize("status", [408, 409, 429, 502, 503, 504])
    def test_what_does_not_pass_is_unreachable(self, server: Server, status: int) -> None:
        server.answer = fails_at_images(error(status, "queue full"))
        with pytest.raises(Unreachable, match=rf"^describe\.url = .* answers {status}: queue full\.$"):
            captioner(server).describe(subject())
        assert len(server.requests) == 2

    def test_the_library_retries_five_times(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        assert captioner(server)._chat._client.max_retries == 5  # type: ignore[attr-defined]

    @pytest.mark.parametrize("response", [error(500, "boom"), Response(200, b"<html>", {"Content-Type": "text/html"}), as_json({"choices": []})])
    def test_a_fault_at_one_image_of_a_healthy_server_is_a_failure(self, server: Server, response: Response) -> None:
        server.answer = fails_at_images(response)
        answer = captioner(server).describe(subject())
        assert answer.status == FAILED
        assert "the server fails at this image, though not at others: " in (answer.reason or "")

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
    def test_a_fault_at_every_image_is_unreachable(self, server: Server, response: Response) -> None:
        server.says(response)
        with pytest.raises(Unreachable, match=r"^describe\.url = .*: the server fails at any image \(.+\)\.$"):
            captioner(server).describe(subject())

    def test_a_fault_that_is_over_when_the_server_is_looked_at_is_forgotten(self, server: Server) -> None:
        server.says(error(500), error(500), GOOD, GOOD)
        assert captioner(server).describe(subject()).status == DESCRIBED

    def test_a_server_that_is_gone_is_unreachable(self) -> None:
        with Server() as server:
            lost = captioner(server)
        with pytest.raises(Unreachable, match=r"^describe\.url = .*: the server does not answer \(.*refused\)\.$"):
            lost.describe(subject())

    def test_a_connection_that_breaks_is_tried_again(self, server: Server) -> None:
        server.says(Response(200, b"{", {"Content-Type": "application/json", "Content-Length": "1000", "Connection": "close"}), GOOD)
        assert captioner(server).describe(subject()).status == DESCRIBED

    def test_a_server_that_hangs_is_unreachable_after_the_timeout(self, server: Server) -> None:
        awake = threading.Event()
        server.answer = lambda request: reply() if awake.wait(10) else error(500)
        started = time.monotonic()
        with pytest.raises(Unreachable, match=r"does not answer \(.*timed out"):
            captioner(server, timeout=0.2).describe(subject())
        awake.set()
        assert time.monotonic() - started < 5

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirect_is_refused_and_the_other_host_asked_nothing(self, server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        with Server() as other:
            moved = Response(status, b"", {"Location": f"{other.url}/chat/completions"})
            server.models = lambda request: moved
            server.says(moved)
            for ask in (lambda: captioner(server).describe(subject()), captioner(server).check):
                with pytest.raises(Refused, match=rf"^describe\.url = .*sends on to another address \({status}\)"):
                    ask()
            assert other.requests == []


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
        with pytest.raises(Refused, match=r"does not take requests without a key; put it into GSEC_CAPTIONER_KEY"):
            captioner(server).check()
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        with pytest.raises(Refused, match=rf"^describe\.url = .*does not take the key in GSEC_CAPTIONER_KEY \({status}: bad key: Bearer \*\*\*\)\.$"):
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
        with pytest.raises(Refused, match=r"^describe\.url = .*mostly ends in /v1"):
            captioner(server).check()

    def test_a_model_that_takes_no_image_is_refused_before_any_image_fails(self, server: Server) -> None:
        server.says(error(400, "At most 0 image(s) may be provided"))
        with pytest.raises(
            Refused, match=r'^describe\.captioner = "openai:tiny": the server declines any image \(400: At most 0 .*Name a model that reads images'
        ):
            captioner(server).check()

    def test_a_server_that_fails_at_any_image_is_refused(self, server: Server) -> None:
        server.says(error(500, "EngineCore died"))
        with pytest.raises(Refused, match=r"^describe\.url = .*fails at any image \(500: EngineCore died\)\. Start the server"):
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
            with pytest.raises(Refused, match=r"^describe\.url: give http://HOST:PORT/v1") as refused:
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
        asking.describe(subject())
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {SECRET}"}
        assert OTHER_SECRET not in str(server.requests)

    def test_without_one_nothing_of_another_service_is_sent(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GSEC_CAPTIONER_KEY", raising=False)
        monkeypatch.setenv("OPENAI_API_KEY", OTHER_SECRET)
        captioner(server).describe(subject())
        assert server.requests[0].headers["authorization"] == "Bearer none"

    @pytest.mark.parametrize("key", [f"{SECRET}\n{SECRET}", f"{SECRET}é"])
    def test_one_that_cannot_be_sent_is_refused_and_not_shown(self, server: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", key)
        with pytest.raises(Refused, match=r"^GSEC_CAPTIONER_KEY: the key holds") as refused:
            captioner(server)
        assert SECRET not in str(refused.value)

    def test_it_is_in_no_log_no_error_and_no_answer(self, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        caplog.set_level(logging.DEBUG)
        asking = captioner(server)
        said = [repr(asking), repr(vars(asking)), repr(vars(vars(asking)["_chat"])["_client"])]

        def echo(status: int) -> Any:
            return lambda request: error(status, f"{'x' * 180} {request.headers['authorization']}")

        for status in (400, 401, 404, 429, 500, 502):
            server.answer = server.models = echo(status)
            for ask in (lambda: asking.describe(subject()), asking.check):
                try:
                    said.append(str(ask()))
                except (Refused, Unreachable):
                    said.append(traceback.format_exc())
        assert len(said) == 15
        assert "***" in str(said)
        for text in (*said, caplog.text):
            assert SECRET[:8] not in text
