"""Servers that misbehave, and several servers that share the work, on real sockets."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from types import SimpleNamespace

import pytest

from gsec_core.captioners import background, pool
from gsec_core.errors import GsecError, Refused
from gsec_core.tables import DESCRIBED, FAILED

from .examples import GOOD, describe, describe_all, png, subject
from .server import GONE, SECRET, Request, Response, Server, as_json, captioner, error, reply

pytestmark = pytest.mark.usefixtures("quick")

DEEP = Response(200, b"[" * 100_000 + b"]" * 100_000, {"Content-Type": "application/json"})
"""Valid JSON that is nested too deeply for most parsers."""


class TestErrors:
    """The kinds of error that the table in module `servers` lists."""

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_an_image_that_the_server_declines_fails_at_once_if_other_images_are_answered(self, server: Server, status: int) -> None:
        server.says(error(status, "too\n many pixels"))
        assert describe(captioner(server), subject())[:5] == (None, None, (), FAILED, f"{status}: too many pixels")
        assert len(server.asked) == 1

    def test_a_server_that_declines_every_image_is_refused(self, server: Server) -> None:
        asking = captioner(server)
        describe(asking, subject())
        server.answer = lambda request: error(400, "At most 0 image(s) may be provided")
        with pytest.raises(Refused, match=r"declines every request \(400: At most 0"):
            describe(asking, subject())

    @pytest.mark.parametrize(
        ("status", "words"),
        [(401, "GSEC_CAPTIONER_KEY"), (402, "wants to be paid"), (403, "GSEC_CAPTIONER_KEY"), (404, "no model tiny"), (405, "not accept such")],
    )
    def test_a_wrong_key_address_or_model_is_refused_at_once(self, server: Server, status: int, words: str) -> None:
        server.says(error(status))
        with pytest.raises(Refused, match=rf"^describe\.url = .*{words}"):
            describe(captioner(server), subject())
        assert len(server.asked) == 1

    @pytest.mark.parametrize("status", [408, 409, 425, 429, 529, 500, 502, 503, 504])
    def test_a_passing_error_is_retried(self, server: Server, status: int) -> None:
        server.says(error(status), GOOD)
        assert describe(captioner(server), subject()).status == DESCRIBED
        assert len(server.asked) == 2

    @pytest.mark.parametrize("status", [408, 409, 429, 503, 529])
    def test_a_server_that_stays_busy_is_an_error_after_the_patience(self, server: Server, status: int) -> None:
        server.says(error(status, "queue full"))
        started = time.monotonic()
        with pytest.raises(GsecError, match=rf"^describe\.url = .* answers {status}: queue full, for describe\.patience = 0\.3 s\. All answers are kept"):
            describe(captioner(server, patience=0.3), subject())
        assert 0.3 < time.monotonic() - started < 60
        assert 1 < len(server.asked) < 40, "the waits between attempts must grow"

    def test_retry_after_of_a_busy_server_is_respected(self, server: Server) -> None:
        server.says(Response(503, b"", {"Retry-After": "1"}), GOOD)
        started = time.monotonic()
        assert describe(captioner(server), subject()).status == DESCRIBED
        assert time.monotonic() - started > 1

    @pytest.mark.parametrize(
        "response", [error(500, "boom"), error(502), Response(200, b"<html>", {"Content-Type": "text/html"}), as_json({"choices": []}), DEEP]
    )
    def test_an_image_at_which_a_healthy_server_fails_three_times_is_failed(self, server: Server, response: Response) -> None:
        server.says(response)
        answer = describe(captioner(server), subject())
        assert answer.status == FAILED
        assert "the server fails at this request, but not at others: " in (answer.reason or "")
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
    def test_a_server_that_fails_at_every_image_is_an_error_after_the_patience(self, server: Server, response: Response) -> None:
        server.answer = lambda request: response
        with pytest.raises(
            GsecError, match=r"^describe\.url = .*: no server has answered for describe\.patience = 0\.3 s \(it fails at every request \(.+\)\)\."
        ) as raised:
            describe(captioner(server, patience=0.3), subject())
        assert raised.value.exit_code == 1

    def test_an_image_is_described_if_the_server_recovers_in_time(self, server: Server) -> None:
        server.says(error(500), error(500), GOOD)
        assert describe(captioner(server), subject()).status == DESCRIBED

    def test_a_server_that_stays_away_is_an_error_after_the_patience(self) -> None:
        with Server() as server:
            lost = captioner(server, patience=0.3)
        with pytest.raises(GsecError, match=r"^describe\.url = .*: no server has answered .* \(the server does not answer \(.+\)\)\."):
            describe(lost, subject())

    def test_a_server_that_starts_late_is_awaited(self) -> None:
        with Server() as first:
            late = captioner(first)
        asked = [background.start(late.describe(subject(uri=str(number)))) for number in range(5)]
        assert not wait(asked, timeout=0.3).done
        with Server(first.port) as server:
            assert [future.result(120).status for future in asked] == [DESCRIBED] * 5
            assert len(server.asked) == 5

    def test_a_server_that_fails_but_reports_to_be_healthy_is_awaited(self, server: Server) -> None:
        """vLLM that is shutting down answers 200 about its health and 500 to every request."""
        ended = threading.Event()
        server.answer = lambda request: reply() if ended.is_set() else error(500, "EngineCore died")
        future = background.start(captioner(server).describe(subject()))
        assert not wait([future], timeout=0.3).done
        ended.set()
        assert future.result(120).status == DESCRIBED

    def test_a_server_that_returns_with_another_model_is_refused(self, server: Server) -> None:
        asking = captioner(server)
        describe(asking, subject())
        server.healthy, server.answer = False, lambda request: error(404, "no such model") if server.healthy else error(503)
        future = background.start(asking.describe(subject()))
        assert not wait([future], timeout=0.3).done
        server.healthy = True
        with pytest.raises(Refused, match="has no model tiny"):
            future.result(120)

    def test_a_request_whose_connection_breaks_is_retried(self, server: Server) -> None:
        server.says(Response(200, b"{", {"Content-Type": "application/json", "Content-Length": "1000", "Connection": "close"}), GONE, GOOD)
        assert describe(captioner(server), subject()).status == DESCRIBED

    def test_an_image_at_which_the_server_is_lost_each_time_is_retried_alone_and_then_failed(self, server: Server) -> None:
        """Images under way at the same time do not fail. The last attempt runs alone, so the failure is certainly due to this image."""
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
        fatal, *others = describe_all(captioner(server, concurrency=8), pictures)
        assert (fatal.status, {answer.status for answer in others}) == (FAILED, {DESCRIBED})
        assert "the server was silent or gone 3 times during this request, finally when it was sent alone" in (fatal.reason or "")
        assert (len(at_once), at_once[-1]) == (3, 1)

    def test_an_image_at_which_the_server_hangs_three_times_is_failed(self, server: Server) -> None:
        awake = threading.Event()
        server.answer = lambda request: reply() if request.is_plain or awake.wait(60) else error(500)
        answer = describe(captioner(server, timeout=2), subject())
        awake.set()
        assert answer.status == FAILED
        lost = "the server was silent or gone 3 times during this request, finally when it was sent alone"
        assert answer.reason == f"{lost}: the server does not answer: timed out"

    def test_a_slow_server_gets_fewer_requests_at_once_and_no_image_fails(self, server: Server) -> None:
        """The server is slower with more requests under way, so that with too many all of them exceed the timeout."""

        def answer(request: Request) -> Response:
            time.sleep(0.2 * server.at_once)
            return reply()

        server.answer = answer
        answers = describe_all(captioner(server, concurrency=16, timeout=2), [subject(uri=str(number)) for number in range(30)])
        assert {answer.status for answer in answers} == {DESCRIBED}

    def test_a_server_that_accepts_few_requests_at_once_gets_few(self, server: Server) -> None:
        def answer(request: Request) -> Response:
            if not request.is_plain and server.at_once > 3:
                return error(503, "queue full")
            time.sleep(0.01)
            return reply()

        server.answer = answer
        answers = describe_all(captioner(server, concurrency=64), [subject(uri=str(number)) for number in range(150)])
        assert {answer.status for answer in answers} == {DESCRIBED}

    def test_a_reply_that_arrives_byte_by_byte_is_not_awaited_longer_than_the_timeout(self, server: Server) -> None:
        server.answer = lambda request: reply() if request.is_plain else reply()._replace(drip=0.05)
        started = time.monotonic()
        answer = describe(captioner(server, timeout=2), subject())
        assert (answer.status, time.monotonic() - started < 60) == (FAILED, True)

    @pytest.mark.parametrize("tokens", ["many", 2**40, None, -1])
    def test_odd_token_counts_are_recorded_as_zero(self, server: Server, tokens: object) -> None:
        server.says(reply(prompt_tokens=tokens))
        answer = describe(captioner(server), subject())
        assert answer.cost is not None
        assert answer.cost[:3] == (1, 0, 12)

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirect_is_refused_and_nothing_is_sent_to_the_other_host(self, server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
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

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The time in seconds by which patience is measured; it stands still unless a test changes it."""
        now = [1000.0]
        monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def test_replicas_share_the_work(self, server: Server, other: Server) -> None:
        """They answer only when both have as many requests under way as the setting says."""
        together = threading.Barrier(4)
        for replica in (server, other):
            replica.answer = lambda request: reply() if request.is_plain or together.wait(60) >= 0 else error(500)
        asking = captioner(server, other, concurrency=2)
        assert asking.concurrency == 8
        assert {answer.status for answer in describe_all(asking, [subject(uri=str(number)) for number in range(40)])} == {DESCRIBED}
        assert (len(server.asked), len(other.asked)) == (20, 20)

    def test_a_missing_replica_is_named_in_the_log_and_the_others_do_its_work(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        with Server() as dead:
            asking = captioner(dead, server, concurrency=2)
        asking.check()
        assert f'describe.url = "{dead.url}": the server does not answer' in caplog.text
        assert {answer.status for answer in describe_all(asking, [subject(uri=str(number)) for number in range(20)])} == {DESCRIBED}
        assert len(server.asked) == 20

    def test_missing_replicas_make_no_image_fail(self, server: Server) -> None:
        with Server() as one, Server() as two, Server() as three:
            dead = [one, two, three]
        assert describe(captioner(*dead, server), subject()).status == DESCRIBED

    def test_if_all_replicas_are_missing_the_refusal_has_the_reason_of_each(self) -> None:
        with Server() as one, Server() as two:
            asking = captioner(one, two)
        with pytest.raises(Refused, match=rf"{one.port}.*does not answer.*{two.port}.*does not answer.*Start the server"):
            asking.check()

    def test_a_replica_that_dies_is_used_again_after_it_returns(self, server: Server) -> None:
        """The other replica answers only after that."""
        dying, used = Server(), threading.Event()
        asking = captioner(server, dying, concurrency=2)
        server.answer = lambda request: reply() if request.is_plain or used.wait(60) else error(500)
        with dying:
            dying.says(reply(), reply(), reply(), GONE)
            futures = [background.start(asking.describe(subject(uri=str(number)))) for number in range(200)]
            while len(dying.asked) < 4:
                time.sleep(0.01)
        back = Server(dying.port)
        back.answer = lambda request: reply() if request.is_plain or used.set() is None else error(500)
        with back:
            assert {future.result(120).status for future in futures} == {DESCRIBED}
        answered = len(server.asked) + 3 + len(back.asked)
        assert answered == 200, "only requests under way at its death may be asked again"

    @pytest.mark.parametrize("response", [error(500), error(400), Response(200, b"<html>"), reply("This image", finish="abort")])
    def test_what_one_replica_cannot_describe_another_does(self, server: Server, other: Server, response: Response) -> None:
        """The replica that fails is always free, since the other takes its time."""
        other.answer = lambda request: reply() if request.is_plain else response
        server.answer = lambda request: time.sleep(0.02) or reply()
        answers = describe_all(captioner(other, server, concurrency=2), [subject(uri=str(number)) for number in range(20)])
        assert {answer.status for answer in answers} == {DESCRIBED}

    def test_an_image_that_every_replica_declines_is_failed(self, server: Server, other: Server) -> None:
        for replica in (server, other):
            replica.says(error(400, "too many pixels"))
        assert describe(captioner(server, other), subject())[3:5] == (FAILED, "400: too many pixels")
        assert (len(server.asked), len(other.asked)) == (1, 1)

    def test_a_replica_that_stays_busy_ends_nothing_while_another_answers(self, server: Server, other: Server, clock: list[float]) -> None:
        """The other replica takes 0.4 s for each answer, and has the first one only after the busy one was tried again."""
        again = threading.Event()

        def is_busy(request: Request) -> Response:
            if len(other.asked) > 1:
                again.set()
            return reply() if request.is_plain else error(429)

        def answer(request: Request) -> Response:
            if not request.is_plain:
                assert again.wait(60)
                clock[0] += 0.4
            return reply()

        server.answer, other.answer = answer, is_busy
        answers = describe_all(captioner(other, server, concurrency=1, patience=1), [subject(uri=str(number)) for number in range(15)])
        assert {answer.status for answer in answers} == {DESCRIBED}

    def test_what_one_replica_declines_waits_for_a_busy_one(self, server: Server, other: Server) -> None:
        server.says(error(400, "too many pixels"))
        other.says(error(429), error(429), error(429), GOOD)
        answers = describe_all(captioner(server, other), [subject(uri=str(number)) for number in range(6)])
        assert {answer.status for answer in answers} == {DESCRIBED}

    def test_what_one_replica_declines_is_failed_if_the_other_stays_busy(self, server: Server, other: Server, clock: list[float]) -> None:
        def is_busy(request: Request) -> Response:
            if len(server.asked) == 6:  # all are declined there
                clock[0] += 0.1
            return reply() if request.is_plain else error(429)

        server.says(error(400, "too many pixels"))
        other.answer = is_busy
        answers = describe_all(captioner(server, other, patience=0.5), [subject(uri=str(number)) for number in range(6)])
        assert {answer[3:5] for answer in answers} == {(FAILED, "400: too many pixels")}

    def test_a_replica_that_does_not_accept_the_key_is_refused_at_once(self, server: Server, other: Server) -> None:
        other.answer = lambda request: error(401)
        with pytest.raises(Refused, match=rf"{other.port}.*does not accept"):
            captioner(server, other).check()
        with pytest.raises(Refused, match=rf"{other.port}.*does not accept"):
            describe_all(captioner(server, other, concurrency=1), [subject(uri=str(number)) for number in range(4)])
