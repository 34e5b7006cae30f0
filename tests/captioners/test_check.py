"""The check of a server before any image is described, and the handling of the key."""

import logging
import traceback
from typing import Any

import pytest

from gsec_core.captioners import captioner_identity, load_captioner
from gsec_core.config import DescribeConfig
from gsec_core.errors import GsecError, Refused
from gsec_core.tables import DESCRIBED

from .examples import describe, subject
from .server import OTHER_SECRET, SECRET, Response, Server, as_json, captioner, error, reply

pytestmark = pytest.mark.usefixtures("quick")


class TestCheck:
    def test_a_server_that_is_ready_passes(self, server: Server) -> None:
        captioner(server, image_size=64).check()
        assert [request.path for request in server.requests] == ["/v1/models", "/v1/chat/completions"]
        assert server.requests[1].is_plain
        assert server.requests[1].picture.size == (64, 64)

    def test_a_server_that_does_not_answer_is_refused(self) -> None:
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

    def test_a_model_that_is_not_served_is_refused_with_the_names_of_those_that_are(self, server: Server) -> None:
        server.models = lambda request: as_json({"object": "list", "data": [{"id": "a/b"}, {"id": "c"}]})
        with pytest.raises(Refused, match=r'^describe\.captioner = "openai:tiny": http.* has no such model; its models are: a/b, c\.$'):
            captioner(server).check()

    @pytest.mark.parametrize(
        "response", [error(404), error(500), error(400), Response(200, b"<html>", {"Content-Type": "text/html"}), as_json({"data": "x"}), as_json([])]
    )
    def test_an_address_that_is_not_of_such_an_api_is_refused(self, server: Server, response: Response) -> None:
        server.models = lambda request: response
        with pytest.raises(Refused, match=r"^describe\.url = .*usually ends in /v1"):
            captioner(server).check()

    def test_a_model_that_takes_no_image_is_refused_before_any_image_fails(self, server: Server) -> None:
        server.answer = lambda request: error(400, "At most 0 image(s) may be provided")
        with pytest.raises(
            Refused, match=r'^describe\.captioner = "openai:tiny": http.* declines every request \(400: At most 0 .*Name a model that reads images'
        ):
            captioner(server).check()

    def test_a_server_that_fails_at_every_image_is_refused(self, server: Server) -> None:
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
    def test_an_invalid_address_is_refused_and_not_printed(self, url: str) -> None:
        config = DescribeConfig(captioner="openai:tiny", url=url)
        for use in (captioner_identity, lambda config: load_captioner(config, device="cpu", threads=1)):
            with pytest.raises(Refused, match=r"^describe\.url: give an address such as http://HOST:PORT/v1") as refused:
                use(config)
            assert SECRET not in str(refused.value)


class TestKey:
    def test_the_key_is_sent_to_the_server_and_no_credentials_of_other_services_are(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_without_a_key_no_key_of_another_service_is_sent(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GSEC_CAPTIONER_KEY", raising=False)
        monkeypatch.setenv("OPENAI_API_KEY", OTHER_SECRET)
        describe(captioner(server), subject())
        assert server.asked[0].headers["authorization"] == "Bearer none"

    def test_a_key_that_the_server_repeats_is_masked(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        server.says(reply(f"A bus with {SECRET} on it."))
        assert describe(captioner(server), subject()).text == "A bus with *** on it."
        server.models = lambda request: as_json({"object": "list", "data": [{"id": SECRET}]})
        with pytest.raises(Refused, match=r"its models are: \*\*\*\."):
            captioner(server).check()

    def test_proxies_of_the_environment_are_not_used(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        with Server() as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            assert describe(captioner(server), subject()).status == DESCRIBED
            assert proxy.requests == []

    @pytest.mark.parametrize("key", [f"{SECRET}\n{SECRET}", f"{SECRET}é"])
    def test_a_key_that_cannot_be_sent_is_refused_and_not_printed(self, server: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", key)
        with pytest.raises(Refused, match=r"^GSEC_CAPTIONER_KEY: the key contains") as refused:
            captioner(server)
        assert SECRET not in str(refused.value)

    def test_the_key_is_in_no_log_no_error_and_no_answer(self, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setenv("GSEC_CAPTIONER_KEY", SECRET)
        caplog.set_level(logging.DEBUG)
        asking = captioner(server, patience=0.3)
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
