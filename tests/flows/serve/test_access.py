"""Access to the report server, and the headers of its answers."""

import pytest
from starlette.testclient import TestClient

from flows.serve.app import HEADERS
from flows.serve.known import Known, Remembered

from .examples import SECRET, Shown, basic, routes, served


def test_with_a_token_nothing_is_served_without_it(shown: Shown) -> None:
    wrong = ["", "Bearer", "Bearer x", f"Bearer {SECRET}x", basic("me", "x"), basic(SECRET, ""), "Basic !", "Basic é", SECRET, f"Digest {SECRET}"]
    right = [f"Bearer {SECRET}", f"bearer  {SECRET}", basic("", SECRET), basic("anybody", SECRET)]
    with served(shown.store) as open_, served(shown.store, token=SECRET) as guarded:
        for route in routes(shown):
            for method in ("GET", "HEAD"):
                as_ever = open_.request(method, route)
                for authorization in wrong:
                    answer = guarded.request(method, route, headers={b"Authorization": authorization.encode("latin-1")} if authorization else {})
                    assert answer.status_code == 401, (route, authorization)
                    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
                for authorization in right:
                    answer = guarded.request(method, route, headers={"Authorization": authorization})
                    assert answer.status_code == as_ever.status_code, (route, authorization)
        assert guarded.post("/").status_code == 401
        assert guarded.get("/health").text == "ok\n"
        assert guarded.head("/health").status_code == 200


def test_a_token_may_have_letters_beyond_ascii(shown: Shown) -> None:
    with served(shown.store, token="schlüssel:Ω") as client:
        for authorization in (basic("me", "schlüssel:Ω").encode(), "Bearer schlüssel:Ω".encode()):
            assert client.get("/nothing", headers={b"Authorization": authorization}).status_code == 404


@pytest.mark.parametrize("host", ["x/health?", "x/health#", "127.0.0.1/health?", "127.0.0.1/health?x=", ""])
def test_a_forged_host_header_does_not_pass_the_token(shown: Shown, host: str) -> None:
    with served(shown.store, token=SECRET) as client:
        for route in routes(shown):
            assert client.get(route, headers={"Host": host}).status_code == 401


def test_without_a_token_only_loopback_host_names_are_answered(client: TestClient, shown: Shown) -> None:
    for host in ("evil.example", "evil.example:4280", "127.0.0.1.evil.example", "10.0.0.1", "[", "localhost.evil.example"):
        assert client.get("/", headers={"Host": host}).status_code == 421, host
    for host in ("127.0.0.1", "localhost:4280", "LOCALHOST", "[::1]:4280", "127.0.0.2:1"):
        assert client.get("/", headers={"Host": host}).status_code == 200, host
    assert client.get("/health", headers={"Host": "reports:4280"}).status_code == 200
    with served(shown.store, token=SECRET) as guarded:
        assert guarded.get("/", headers={"Host": "reports.example", "Authorization": f"Bearer {SECRET}"}).status_code == 200


def test_every_answer_has_the_security_headers(shown: Shown, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [client.get(route) for route in [*routes(shown), "/health", "/?%FF=%FF"]]
    answers += [client.post("/"), client.get("/", headers={"Host": "evil.example"})]
    answers.append(client.get(shown.report, headers={"If-None-Match": client.get(shown.report).headers["etag"]}))
    with served(shown.store, token=SECRET) as guarded:
        answers.append(guarded.get("/"))
    for error in (ZeroDivisionError("why"), OSError(5, "why")):
        with monkeypatch.context() as patched:
            patched.setattr(Known, "runs", lambda self, error=error: (_ for _ in ()).throw(error))
            answers.append(client.get("/"))
            assert "why" not in answers[-1].text
    assert {answer.status_code for answer in answers} == {200, 302, 304, 401, 404, 405, 421, 500, 503}
    for answer in answers:
        for name, value in HEADERS.items():
            report = "sandbox" in answer.headers["Content-Security-Policy"]
            wanted = "unsafe-none" if report and name == "Cross-Origin-Opener-Policy" else value
            assert answer.headers.get(name) == wanted or name == "Cache-Control", answer.url
        assert "default-src 'none'; frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"].startswith("private")
        assert "server" not in answer.headers


def test_the_report_server_only_reads(shown: Shown, client: TestClient) -> None:
    before = {path: path.stat().st_mtime_ns for path in shown.folder.rglob("*")}
    for route in routes(shown):
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"):
            assert client.request(method, route).status_code in (404, 405)
        client.get(route)
        assert client.head(route).content == b""
    assert {path: path.stat().st_mtime_ns for path in shown.folder.rglob("*")} == before
    files = Remembered(shown.store.files)
    for write in (lambda: files.create("x", b""), lambda: files.replace("x", b""), lambda: files.move("x", "y"), lambda: files.remove("x")):
        with pytest.raises(OSError, match="writes nothing"):
            write()
