"""The processes of a stack, tested with small real processes."""

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from deployments import apply, commands, config, processes
from deployments.config import AUTH, RAY_TOKEN, PipelineEntry, RayEntry, StackConfig
from deployments.processes import Service
from flows.serve.access import TOKEN
from gsec_core.errors import GsecError, Refused

from ..command import has_ended, wait

WAITS = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
"""A program that reports that it is ready and then only waits."""

LISTENS = "import socket; listening = socket.create_server(('127.0.0.1', {})); " + WAITS
"""The same, but it reports this after it listens at a port."""

HAS_A_CHILD = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {WAITS!r}, sys.argv[1]]); time.sleep(600)"
"""A program that does not end its child when it ends."""

BEGINS_A_SESSION = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {WAITS!r}, sys.argv[1]], start_new_session=True); time.sleep(600)"
"""A program that starts its child in a session of its own, as a worker starts its flows."""

ENDS = "import sys; sys.exit('the port is taken')"


@pytest.fixture(autouse=True)
def without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processes.SECRETS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[StackConfig]:
    found = StackConfig(home=tmp_path / "home")
    yield found
    for name in processes.started(found):
        processes.stop(found, name)


def service(stack: StackConfig, program: str, name: str = "worker", **environment: str) -> Service:
    ready = stack.home / f"ready-{len(environment)}"
    return Service(name, (sys.executable, "-c", program, str(ready)), environment, lambda since: ready.exists())


def process(stack: StackConfig, name: str = "worker") -> psutil.Process:
    return psutil.Process(json.loads((stack.home / "processes.json").read_text())[name]["pid"])


def test_a_running_service_is_kept_and_one_with_changed_variables_is_restarted(stack: StackConfig) -> None:
    assert processes.start(stack, service(stack, WAITS))
    first = process(stack)
    assert not processes.start(stack, service(stack, WAITS))
    assert process(stack) == first
    assert processes.started(stack) == ["worker"]
    assert processes.start(stack, service(stack, WAITS, GSEC_ROOTS="/other"))
    assert not first.is_running()
    assert process(stack).environ()["GSEC_ROOTS"] == "/other"
    assert processes.stop(stack, "worker")
    assert not processes.stop(stack, "worker")
    assert processes.started(stack) == []


def test_a_changed_secret_restarts_the_service_and_is_written_to_no_file(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.start(stack, service(stack, WAITS))
    monkeypatch.setenv("GSEC_REPORTS_TOKEN", "a-secret-of-many-letters")
    assert processes.start(stack, service(stack, WAITS))
    assert process(stack).environ()["GSEC_REPORTS_TOKEN"] == "a-secret-of-many-letters"
    written = [path.read_text() for path in stack.home.rglob("*") if path.is_file()]
    assert not any("a-secret" in text for text in written)


def test_a_service_that_ends_at_once_is_an_error_with_the_end_of_its_log(stack: StackConfig) -> None:
    with pytest.raises(GsecError, match=r"worker ended\. Its log, .*worker\.log, ends: the port is taken"):
        processes.start(stack, service(stack, ENDS))
    assert processes.started(stack) == []


def test_children_of_a_service_end_with_it(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 1)
    processes.start(stack, service(stack, HAS_A_CHILD))
    (child,) = process(stack).children()
    processes.stop(stack, "worker")
    wait(lambda: has_ended(child), 300)


def test_a_child_that_outlived_its_service_is_found_and_stopped(stack: StackConfig) -> None:
    processes.start(stack, service(stack, BEGINS_A_SESSION))
    killed = process(stack)
    (child,) = killed.children()
    killed.kill()
    psutil.wait_procs([killed])
    assert not has_ended(child)
    assert processes.started(stack) == ["worker"]
    assert processes.start(stack, service(stack, WAITS)), "a new service must start"
    assert not has_ended(child), "the child of the old service must go on"
    assert processes.stop(stack, "worker")
    assert has_ended(child)
    assert processes.started(stack) == []


@pytest.mark.parametrize("left", [None, b"", b'{\n "worker": {\n  "pi', b"\0" * 100], ids=["gone", "empty", "torn", "of zeros"])
def test_without_a_readable_record_a_running_service_is_restarted_and_can_be_stopped(
    left: bytes | None, stack: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_record() -> None:
        (stack.home / "processes.json").unlink() if left is None else (stack.home / "processes.json").write_bytes(left)

    monkeypatch.setattr(config, "load", lambda file, complete=True: stack)
    processes.start(stack, service(stack, WAITS))
    first = process(stack)
    lose_the_record()
    assert processes.start(stack, service(stack, WAITS))
    assert has_ended(first)
    second = process(stack)
    lose_the_record()
    assert commands.down() == 0
    assert has_ended(second)


def test_a_service_of_another_stack_is_left_alone(stack: StackConfig, tmp_path: Path) -> None:
    processes.start(stack, service(stack, WAITS))
    other = StackConfig(home=tmp_path / "other")
    other.home.mkdir()
    assert not processes.stop(other, "worker")
    assert processes.started(stack) == ["worker"]


def test_a_second_stack_file_cannot_take_over_the_home_of_running_processes(stack: StackConfig, tmp_path: Path) -> None:
    processes.claim(stack, None)
    processes.start(stack, service(stack, WAITS))
    processes.check_home(stack, tmp_path / "one.toml")  # in place of the demonstration
    processes.claim(stack, tmp_path / "one.toml")
    processes.check_home(stack, tmp_path / "one.toml")
    for other in (tmp_path / "two.toml", None):
        with pytest.raises(Refused, match=r"the processes of .*one\.toml use it"):
            processes.check_home(stack, other)
    processes.stop(stack, "worker")
    processes.check_home(stack, tmp_path / "two.toml")


def test_the_demonstration_does_not_take_over_the_home_of_a_stopped_stack(stack: StackConfig, tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.touch()
    processes.claim(stack, file)
    with pytest.raises(Refused, match=r"it belongs to .*one\.toml, whose deployments the demonstration would replace\. Name that file with --config"):
        processes.check_home(stack, None)
    processes.check_home(stack, tmp_path / "two.toml")
    file.unlink()
    processes.check_home(stack, None)


def test_another_process_that_got_the_number_of_an_ended_service_is_left_alone(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.start(stack, service(stack, WAITS))
    ours = process(stack)
    record = json.loads((stack.home / "processes.json").read_text())
    boot, _, ticks = record["worker"]["began"].partition(" ")
    record["worker"]["began"] = f"{boot} {int(ticks) - 60}"
    (stack.home / "processes.json").write_text(json.dumps(record))
    with monkeypatch.context() as patch:
        patch.setattr(processes, "MARK", "NO_MARK")
        assert processes.started(stack) == []
        assert not processes.stop(stack, "worker")
    assert ours.is_running()
    ours.kill()


def test_a_change_of_the_systems_clock_does_not_matter(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.start(stack, service(stack, WAITS))
    first = process(stack)
    read = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: read(process) + 3600)
    monkeypatch.setattr(processes, "MARK", "NO_MARK")
    assert processes.started(stack) == ["worker"]
    assert not processes.start(stack, service(stack, WAITS))
    assert processes.stop(stack, "worker")
    assert has_ended(first)


def test_without_proc_the_start_of_a_process_is_known_by_the_clock(stack: StackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROC", tmp_path / "none")
    processes.start(stack, service(stack, WAITS))
    assert not processes.start(stack, service(stack, WAITS))
    assert process(stack).create_time() == float(json.loads((stack.home / "processes.json").read_text())["worker"]["began"])


def test_a_service_that_was_killed_is_started_again(stack: StackConfig) -> None:
    processes.start(stack, service(stack, WAITS))
    killed = process(stack)
    killed.kill()
    psutil.wait_procs([killed])
    assert processes.start(stack, service(stack, WAITS))
    assert process(stack) != killed


def test_the_server_is_stopped_last_even_after_it_was_restarted(stack: StackConfig) -> None:
    for name in processes.NAMES:
        processes.start(stack, service(stack, WAITS, name))
    processes.start(stack, service(stack, WAITS, "server", PREFECT_API_DATABASE_CONNECTION_URL="another"))
    assert processes.started(stack) == ["reports", "worker", "ray", "server"]


def test_services_at_another_address_of_this_machine_are_asked_without_a_proxy(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    serves = f"import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.2')"
    server = replace(service(stack, serves, "server"), is_ready=lambda since: processes._answers(f"http://127.0.0.2:{port}/"))
    here = stack.model_copy(update={"host": "127.0.0.2", "port": port})
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "example.org,127.0.0.1")
    monkeypatch.setattr(config, "load", lambda file, complete=True: here)
    monkeypatch.setattr(processes, "services", lambda stack, environment: [server])
    monkeypatch.setattr(apply, "apply", lambda stack: [])
    assert commands.up() == 0


def test_gsec_up_without_a_secret_that_a_running_service_has_is_refused(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "load", lambda file, complete=True: stack)
    monkeypatch.setenv(AUTH, "me:a-secret")
    monkeypatch.setenv(TOKEN, "another-secret")
    processes.start(stack, service(stack, WAITS))
    first = process(stack)
    monkeypatch.delenv(AUTH)
    monkeypatch.setenv(TOKEN, "")
    with pytest.raises(Refused, match=rf"^{TOKEN}, {AUTH}: .* Set it again, or .* gsec down first\.$"):
        commands.up()
    assert process(stack) == first, "the service must still run"
    assert not has_ended(first)
    monkeypatch.setenv(AUTH, "me:a-secret")
    monkeypatch.setenv(TOKEN, "another-secret")
    processes.check_secrets(stack)
    monkeypatch.delenv(AUTH)
    assert commands.down() == 0
    processes.check_secrets(stack)


def test_a_lost_credential_is_refused_only_if_a_running_service_uses_it(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for hears in (), processes.OUTSIDE:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "one")
        processes.start(stack, replace(service(stack, WAITS), hears=hears))
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(Refused, match=r"^AWS_SECRET_ACCESS_KEY: .* gsec down first\.$") if hears else nullcontext():
            processes.check_secrets(stack)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "two")
    processes.check_secrets(stack)
    assert processes.start(stack, replace(service(stack, WAITS), hears=processes.OUTSIDE)), "with another value the service must be started again"


@pytest.mark.parametrize("name", ["AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_KEY", "HF_TOKEN", "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES"])
def test_changed_variables_for_stores_and_models_restart_only_worker_and_reports(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = processes.services(with_a_pipeline(tmp_path), {})
    monkeypatch.setenv(name, "one")
    before = [processes._digest(service) for service in services]
    monkeypatch.setenv(name, "two")
    after = [processes._digest(service) for service in services]
    assert [service.name for service, old, new in zip(services, before, after, strict=True) if old != new] == ["worker", "reports"]


def test_reports_reachable_from_other_machines_need_a_token(tmp_path: Path) -> None:
    stack, auth = with_a_pipeline(tmp_path, host="0.0.0.0"), {AUTH: "me:secret"}
    with pytest.raises(Refused, match=f"only with a token. Set {TOKEN}"):
        processes.services(stack, auth)
    with pytest.raises(Refused, match="it is empty"):
        processes.services(stack, {**auth, TOKEN: ""})
    assert len(processes.services(stack, {**auth, TOKEN: "a-token"})) == 3
    assert len(processes.services(with_a_pipeline(tmp_path), {})) == 3
    assert len(processes.services(StackConfig(host="0.0.0.0"), auth)) == 2, "without reports no token is needed"


def test_curation_is_served_only_if_the_stack_file_says_so_and_with_a_token(tmp_path: Path) -> None:
    reads = with_a_pipeline(tmp_path)
    curates = reads.model_copy(update={"curate": True})
    with pytest.raises(Refused, match=r"curate = true: curation needs a token"):
        processes.services(curates, {})
    for stack, environment, said in ((reads, {}, False), (reads, {TOKEN: "x"}, False), (curates, {TOKEN: "x"}, True)):
        assert ("--curate" in processes.services(stack, environment)[-1].command) == said


def test_a_ray_head_starts_before_the_worker_and_gets_its_variables(tmp_path: Path) -> None:
    stack = with_a_pipeline(tmp_path).model_copy(update={"ray": RayEntry(cpus=0)})
    with pytest.raises(Refused, match="only with a token"):
        processes.services(stack, {})
    services = processes.services(stack, {RAY_TOKEN: "a-secret"})
    assert [service.name for service in services] == list(processes.NAMES)
    _, head, worker, _ = services
    assert head.command[head.command.index("--num-cpus") + 1] == "0"
    assert worker.environment.items() <= head.environment.items(), "slices run on the Ray head's cluster and need the worker's variables"
    assert head.hears == worker.hears
    assert not any("a-secret" in str((service.command, service.environment)) for service in services)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_taken_port_is_refused_at_ipv4_and_ipv6_addresses(host: str, family: socket.AddressFamily, tmp_path: Path) -> None:
    if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with socket.create_server((host, 0), family=family) as taken, socket.create_server((host, 0), family=family) as free:
        ports = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        with pytest.raises(Refused, match=f"port = {ports[0]}: nothing can listen there .*in use"):
            processes.check_ports(StackConfig(home=tmp_path, host=host, port=ports[0], reports_port=ports[1]))
    processes.check_ports(StackConfig(home=tmp_path, host=host, port=ports[0], reports_port=ports[1]))


def test_a_port_may_be_taken_only_by_the_service_that_is_to_listen_there(stack: StackConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        other, port, reports = (each.getsockname()[1] for each in (taken, first, second))
        first.close()
        second.close()
        wanted = stack.model_copy(update={"port": port, "reports_port": reports})
        processes.start(wanted, service(wanted, LISTENS.format(port), "server"))
        processes.check_ports(wanted)
        for setting, at in (("port", other), ("reports_port", port)):
            with pytest.raises(Refused, match=f" {setting} = {at}: nothing can listen there"):
                processes.check_ports(wanted.model_copy(update={setting: at}))
        (stack.home / "processes.json").unlink()
        processes.check_ports(wanted)


class TestWorker:
    """The worker's sign of life, with a fake answer of Prefect's server."""

    @pytest.fixture
    def said(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = []
        monkeypatch.setattr(httpx, "post", lambda url, **more: httpx.Response(200, json=workers))
        return workers

    def worker(self, stack: StackConfig, program: str) -> Service:
        return replace(processes.services(stack, {})[1], command=(sys.executable, "-c", program, str(stack.home / "ready")))

    def beat(self, seconds: float, name: str = "gsec") -> Mapping[str, Any]:
        when = datetime.fromtimestamp(time.time() + seconds, UTC).isoformat().replace("+00:00", "Z")
        return {"name": name, "status": "ONLINE", "last_heartbeat_time": when}

    def test_a_worker_that_ends_at_once_is_not_confused_with_an_earlier_one(self, stack: StackConfig, said: list[Mapping[str, Any]]) -> None:
        said += [self.beat(-1), {**self.beat(0), "last_heartbeat_time": None}, self.beat(60, name="of another machine")]
        with pytest.raises(GsecError, match="worker ended"):
            processes.start(stack, self.worker(stack, ENDS))

    def test_a_worker_that_has_ended_does_not_count_as_ready(self, stack: StackConfig, said: list[Mapping[str, Any]]) -> None:
        worker = self.worker(stack, ENDS)
        with pytest.raises(GsecError, match="worker ended"):
            processes.start(stack, replace(worker, is_ready=lambda since: has_ended(process(stack, "worker"))))

    def test_the_start_of_a_worker_waits_for_its_first_sign_of_life(
        self, stack: StackConfig, said: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said.append(self.beat(-1))
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            said.append(self.beat(1))

        monkeypatch.setattr(processes, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic, time=time.time))  # not also for other threads
        assert processes.start(stack, self.worker(stack, WAITS))
        assert len(pauses) == 1
        assert not processes.start(stack, self.worker(stack, WAITS)), "the same check must find the running worker"


def with_a_pipeline(folder: Path, host: str = "127.0.0.1") -> StackConfig:
    settings = {"source": str(folder / "images"), "store": str(folder / "store")}
    return StackConfig(home=folder / "home", host=host, pipelines={"photos": PipelineEntry(settings=settings)})
