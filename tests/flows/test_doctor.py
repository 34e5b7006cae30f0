"""`gsec doctor` where everything is well, and with common faults."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings

from flows.cli import main
from gsec_core.captioners import servers

from ..captioners.server import Server, error
from ..checkpoint import write_checkpoint
from ..command import GSEC, asking, environment

CHECKS = ["packages", "machine", "store", "scratch", "encoder", "captioner", "namer", "Prefect"]

NOBODY = "http://127.0.0.1:9"
"""An address at which nothing listens."""

SECRET = "hunter2"


class Said(NamedTuple):
    code: object
    lines: dict[str, str]
    """Name of the check -> its line."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(servers.KEY, raising=False)


def doctor(*arguments: str | Path, capsys: pytest.CaptureFixture[str], prefect: str | None = NOBODY) -> Said:
    with asking(prefect), pytest.raises(SystemExit) as exit:
        main(["doctor", *map(str, arguments)])
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    lines = said.out.splitlines()
    assert all(re.match(r"(ok    |FAIL  )\w+: ", line) for line in lines), said.out
    return Said(exit.value.code, {line[6:].partition(":")[0]: line for line in lines})


def test_if_all_is_well_every_check_prints_what_it_found(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = doctor("--store", tmp_path / "store", capsys=capsys, prefect=server)
    assert (said.code, list(said.lines)) == (0, CHECKS), said.lines
    found = {
        "packages": r"Python 3\.\d+\.\d+, gsec \S+, torch \S+, .*prefect 3\.8\.\d+, fastapi \S+, sqlalchemy 2\.0",
        "machine": r"\d+ usable cores of \d+, threads = 0, which is \d+, \d+\.\d GiB memory free, encode\.device = c\w+ \(.*multipl\w+ bfloat16",
        "store": rf"{tmp_path}/store can be written, 0 corpora, 0 runs, \d+\.\d GiB free",
        "scratch": r"can be written, \d+\.\d GiB free",
        "encoder": "lite has 1280 dimensions, 384 shared with text",
        "captioner": "tagger can be used, images at once: 1",
        "namer": "terms can be used",
        "Prefect": rf"a flow ran on {server}, Prefect 3\.8\.\d+",
    }
    for name, pattern in found.items():
        assert re.search(pattern, said.lines[name]), said.lines[name]
    assert list(tmp_path.iterdir()) == [], "the checks must leave no file behind"


def test_a_second_encoder_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = f"open_clip:local-dir:{write_checkpoint(tmp_path / 'clip')}"
    two = ["--store", tmp_path / "store", "--set", "text.source=encoder", "--set"]
    said = doctor(*two, f"text.encoder={second}", capsys=capsys)
    assert said.lines["encoder"].endswith(f"lite has 1280 dimensions, 384 shared with text; {second} has 32 dimensions")
    assert said.lines["namer"].endswith("terms can be used")
    (tmp_path / "clip" / "open_clip_model.safetensors").write_bytes(b"nothing")
    assert re.match(r"FAIL  encoder: text\.encoder = .* could not be loaded", doctor(*two, f"text.encoder={second}", capsys=capsys).lines["encoder"])


def test_every_failing_check_prints_a_remedy_and_the_other_checks_still_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    scratch, url, device = (["--set", setting] for setting in (f"scratch={tmp_path}/nowhere", f"describe.url={NOBODY}/v1", "encode.device=cuda:99"))
    names = ["--store", tmp_path / "file" / "store", "--encoder", "foo", "--captioner", "openai:tiny"]
    said = doctor(*names, *scratch, *url, *device, capsys=capsys, prefect=f"http://me:{SECRET}@127.0.0.1:9/api")
    assert (said.code, list(said.lines)) == (1, CHECKS)
    wrong = {
        "machine": ('encode.device = "cuda:99"', "`auto` uses the CPU"),
        "store": (f"--store {tmp_path}/file/store: cannot be written", "Choose another store"),
        "scratch": (f'scratch = "{tmp_path}/nowhere": no file can be made there', "Make the folder"),
        "encoder": ('encode.encoder = "foo"', "there are `lite` and"),
        "captioner": (f'describe.url = "{NOBODY}/v1": the server does not answer', "Start the server, or correct the address"),
        "Prefect": ("PREFECT_API_URL = http://***@127.0.0.1:9/api: the server does not answer", "Start it"),
    }
    assert said.lines["packages"].startswith("ok")
    for name, (what, remedy) in wrong.items():
        assert said.lines[name].startswith(f"FAIL  {name}: {what}"), said.lines[name]
        assert remedy in said.lines[name]


def test_a_wrong_key_is_reported_but_not_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv(servers.KEY, SECRET)
    with Server() as captioner:
        captioner.models = lambda request: error(401, f"{SECRET} is no key")
        said = doctor("--store", tmp_path, "--encoder", "foo", "--captioner", "openai:tiny", "--set", f"describe.url={captioner.url}", capsys=capsys)
    assert said.lines["captioner"].startswith("FAIL")
    assert "the server does not accept the key in GSEC_CAPTIONER_KEY" in said.lines["captioner"]


def test_a_captioner_is_checked_with_one_plain_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Server() as captioner:
        arguments = ["--store", tmp_path, "--encoder", "foo", "--set", f"describe.url={captioner.url}"]
        said = doctor(*arguments, "--captioner", "openai:tiny", capsys=capsys)
        form = "asked for by the prompt alone: the server does not enforce a pattern"
        assert said.lines["captioner"] == f"ok    captioner: openai:tiny can be used, images at once: 128, form of sentences: {form}"
        assert [request.is_plain for request in captioner.requests if request.method == "POST"] == [True]
        said = doctor(*arguments, "--captioner", "openai:large", capsys=capsys)
    assert "has no such model; its models are: tiny" in said.lines["captioner"]


def test_a_package_of_an_unsupported_version_is_named_with_the_command_that_installs_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, version in (("fastapi", "0.200.0"), ("sqlalchemy", "2.1.0b1")):
        installed = tmp_path / f"{name}-{version}.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = doctor("--store", tmp_path, "--encoder", "foo", capsys=capsys)
    assert said.lines["packages"].startswith("FAIL  packages: fastapi is 0.200.0, sqlalchemy is 2.1.0b1. Install what gsec works with: pip install ")
    assert '"fastapi<0.151,>=0.139"' in said.lines["packages"]


def test_a_torch_that_cannot_be_imported_is_a_failed_check_and_not_a_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    paths = os.pathsep.join(filter(None, [str(broken.parent), os.environ.get("PYTHONPATH", "")]))
    env = {**environment(tmp_path), "PYTHONPATH": paths, "PREFECT_API_URL": f"{NOBODY}/api"}
    done = subprocess.run([*GSEC, "doctor", "--store", tmp_path / "store"], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1
    assert "FAIL  packages: torch cannot be imported (libcudart.so.12: cannot open shared object file)" in done.stdout
    assert "ok    store: " in done.stdout
    assert len(done.stdout.splitlines()) == len(CHECKS)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def old_server() -> Iterator[str]:
    """A fake Prefect server that is healthy but has version 3.1.0."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"/api/health": True, "/api/admin/version": "3.1.0"}[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


def test_a_prefect_server_that_is_too_old_is_a_failed_check(old_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = doctor("--store", tmp_path, "--encoder", "foo", capsys=capsys, prefect=old_server)
    assert said.lines["Prefect"].startswith(f"FAIL  Prefect: PREFECT_API_URL = {old_server}: the server is Prefect 3.1.0, too old for 3.8.")
    assert said.lines["Prefect"].endswith("Upgrade the server.")


def test_a_temporary_server_that_does_not_start_is_a_failed_check_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "prefect.db").write_text("not a database")
    database = f"sqlite+aiosqlite:///{home}/prefect.db"
    with temporary_settings({PREFECT_HOME: home, PREFECT_API_DATABASE_CONNECTION_URL: database, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 60}):
        said = doctor("--store", tmp_path, "--encoder", "foo", capsys=capsys, prefect=None)
    assert said.lines["Prefect"].startswith("FAIL  Prefect: Prefect's temporary server does not start: ")
    assert "file is not a database" in said.lines["Prefect"]
    assert said.lines["Prefect"].endswith("set PREFECT_HOME to another folder.")
