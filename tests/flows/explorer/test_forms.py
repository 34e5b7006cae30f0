"""Whose forms the explorer accepts."""

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from flows.serve import access, server
from flows.serve.access import TOKEN
from flows.serve.app import application
from gsec_core.errors import Refused

from .examples import ELSEWHERE, SECRET, Shown, check, sent, served


def test_without_curate_forms_are_refused_and_curate_needs_a_token(shown: Shown, client: TestClient) -> None:
    assert client.post(f"{shown.base}/curation", data={"kind": "rename", "key": 0, "name": "x"}).status_code == 405
    assert not shown.log.read()
    with pytest.raises(ValueError, match="token"):
        application([shown.store], curate=True)


def test_forms_sent_by_pages_of_other_servers_or_with_a_wrong_token_are_refused(shown: Shown, curator: TestClient) -> None:
    rename = {"kind": "rename", "key": 0, "name": "x"}
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "", "Origin": ELSEWHERE},
    ):
        assert sent(curator, shown, headers=headers, **rename).status_code == 403
    for origin in (ELSEWHERE, "null", "http://127.0.0.1:4281", "http://localhost:4280"):
        answer = curator.post(f"{shown.base}/curation", data=rename, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "a page of another server" in answer.text
    for token in ("", "0" * 64, "é"):
        check(sent(curator, shown, token=token, **rename), 403)
    with served(shown, curate=True, user="bob") as other:
        token = re.search(r'name="token" value="(\w+)"', other.get(f"{shown.base}/clusters/0").text)
        assert token
        check(sent(curator, shown, token=token[1], **rename), 403)
    assert not shown.log.read()


def test_a_form_with_only_an_origin_header_is_accepted(shown: Shown, curator: TestClient) -> None:
    """Browsers send only Origin over plain HTTP to another machine. Under the policy `no-referrer` they would send `null`."""
    page = curator.get(f"{shown.base}/clusters/0")
    assert page.headers["referrer-policy"] == "same-origin"
    token = re.search(r'name="token" value="(\w+)"', page.text)
    assert token
    form = {"token": token[1], "kind": "star", "key": 0}
    assert curator.post(f"{shown.base}/curation", data=form, headers={"Origin": "http://127.0.0.1:4280"}).status_code == 303


def test_without_a_token_a_malformed_login_header_is_ignored(shown: Shown, client: TestClient) -> None:
    for login in (b"Basic !", b"Basic \xe9", b"Basic /w==", b"Bearer \xe9", b"Digest x"):
        check(client.get(f"{shown.base}/explore", headers={b"Authorization": login}))


def test_without_the_token_no_page_and_no_form_is_served(shown: Shown) -> None:
    with served(shown, curate=True, user=None) as client:
        for path in ("/explore", "/clusters/0", "/images", "/map.bin"):
            assert client.get(shown.base + path).status_code == 401
        assert client.get("/static/explore.js").status_code == 401
        assert client.post(f"{shown.base}/curation", data={"kind": "rename"}).status_code == 401
        assert client.get(f"/?token={SECRET}").status_code == 401, "a token in a link counts only if the server itself has made the token"


def test_a_link_with_the_token_logs_in(shown: Shown) -> None:
    with served(shown, curate=True, by_link=True, user=None) as client:
        assert client.get("/?token=x").status_code == 401
        assert client.get(f"//elsewhere.example/?token={SECRET}").headers["location"] == "/"
        client.cookies.clear()
        answer = client.get(f"{shown.base}/explore?token={SECRET}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"{shown.base}/explore")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert SECRET not in cookie
        assert client.get(f"{shown.base}/explore").status_code == 200
        assert sent(client, shown, kind="star", key=0).status_code == 303
        assert shown.log.read()[0].who == access.NOBODY
        client.cookies.clear()
        client.cookies.set(cookie.partition("=")[0], "x")
        assert client.get(f"{shown.base}/explore").status_code == 401


@pytest.mark.parametrize("curate", [False, True])
def test_with_curate_the_process_makes_a_token_itself_if_it_listens_on_loopback_only(
    curate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    started: list[Any] = []
    monkeypatch.setattr(
        server.uvicorn, "Server", lambda config: started.append(config) or type("Ended", (), {"run": lambda self, sockets: sockets[0].close()})()
    )
    with pytest.raises(Refused, match="only with a token"):
        server.serve([str(tmp_path)], "0.0.0.0", 0, curate)
    server.serve([str(tmp_path)], "127.0.0.1", 0, curate)
    link = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S{20,})", capfd.readouterr().err)
    assert (link is not None) == curate
    with TestClient(started[0].app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        assert client.get("/").status_code == (401 if curate else 200)
        if link:
            assert client.get(f"/?token={link[2]}").status_code == 303
            assert client.get("/").status_code == 200
