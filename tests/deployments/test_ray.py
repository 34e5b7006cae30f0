"""Checks the files of deployments/ray as far as that is possible without Docker, SSH and Kubernetes."""

import copy
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names
from ray.autoscaler._private.util import prepare_config, validate_config

from deployments import config

from ..compose import ROOT

FOLDER = ROOT / "deployments" / "ray"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"gsec:{PROJECT['version']}"
CLUSTER = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
KUBERNETES = yaml.safe_load((FOLDER / "raycluster.yaml").read_text())["spec"]
GROUPS = {group["groupName"]: group for group in KUBERNETES["workerGroupSpecs"]}


def environment(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


ENVIRONMENT = environment(FOLDER / "ray.env.example")


def container(group: dict[str, Any]) -> dict[str, Any]:
    [found] = group["template"]["spec"]["containers"]
    return dict(found)


def flags(command: str) -> dict[str, str]:
    """The flags with a value of a `ray start` command."""
    words = command.split()
    return {word: value for word, value in pairwise(words) if word.startswith("--") and not value.startswith("--")}


class TestMachines:
    def test_ray_accepts_the_cluster_file(self) -> None:
        validate_config(prepare_config(copy.deepcopy(CLUSTER)))

    def test_ray_refuses_a_cluster_file_with_a_mistake(self) -> None:
        wrong = prepare_config({**copy.deepcopy(CLUSTER), "dokcer": {}})
        with pytest.raises(Exception, match="dokcer"):
            validate_config(wrong)

    def test_nodes_have_the_image_and_the_environment(self) -> None:
        assert CLUSTER["docker"]["image"] == IMAGE
        assert any("/etc/gsec/ray.env" in option for option in CLUSTER["docker"]["run_options"])

    def test_nodes_join_the_head_which_has_no_core(self) -> None:
        [_, head], [_, node] = CLUSTER["head_start_ray_commands"], CLUSTER["worker_start_ray_commands"]
        assert flags(head)["--num-cpus"] == "0"
        assert flags(node)["--address"] == f"$RAY_HEAD_IP:{flags(head)['--port']}"
        assert "--num-cpus" not in flags(node)

    def test_the_image_has_the_programs_that_ray_up_needs(self) -> None:
        dockerfile = (ROOT / "deployments" / "containers" / "Dockerfile").read_text()
        assert {"openssh-client", "rsync", "wget"} <= set(dockerfile.split())
        assert ",ray]'" in dockerfile


class TestKubernetes:
    def test_the_version_of_ray_is_the_pinned_one(self) -> None:
        [pin] = [found for found in map(Requirement, PROJECT["optional-dependencies"]["ray"]) if found.name == "ray"]
        assert KUBERNETES["rayVersion"] in pin.specifier
        assert ray.__version__ in pin.specifier

    @pytest.mark.parametrize("group", [KUBERNETES["headGroupSpec"], *GROUPS.values()], ids=["head", *GROUPS])
    def test_every_pod_has_the_image_the_environment_and_resource_limits(self, group: dict[str, Any]) -> None:
        pod = container(group)
        assert pod["image"] == IMAGE
        assert pod["envFrom"] == [{"secretRef": {"name": "gsec-environment"}}]
        assert pod["resources"]["requests"] == pod["resources"]["limits"], "requests must equal limits, so that the resources by which slices are placed exist"

    def test_the_head_has_no_core_and_no_group_is_ever_empty(self) -> None:
        assert KUBERNETES["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in GROUPS.values():
            assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

    def test_only_the_gpu_group_has_a_gpu_and_all_groups_have_equal_cores(self) -> None:
        assert {name: container(group)["resources"]["limits"].get("nvidia.com/gpu") for name, group in GROUPS.items()} == {"cpu": None, "gpu": "1"}
        assert len({container(group)["resources"]["limits"]["cpu"] for group in GROUPS.values()}) == 1, (
            "equal cores give equal thread counts, and so equal labels"
        )

    def test_scratch_files_are_on_a_volume(self) -> None:
        for group in GROUPS.values():
            [mount] = container(group)["volumeMounts"]
            assert mount["mountPath"] == "/tmp"
            assert group["template"]["spec"]["volumes"] == [{"name": mount["name"], "emptyDir": {}}]

    def test_ray_requires_a_token(self) -> None:
        assert KUBERNETES["authOptions"] == {"mode": "token"}


class TestEnvironment:
    def test_the_example_environment_has_every_variable_that_nodes_and_drivers_need(self) -> None:
        assert {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "GSEC_CAPTIONER_KEY"} <= set(ENVIRONMENT)
        assert ENVIRONMENT["RAY_AUTH_MODE"] == "token"
        assert urlsplit(ENVIRONMENT["PREFECT_API_URL"]).hostname == CLUSTER["provider"]["head_ip"]

    def test_the_example_environment_has_no_real_secret(self) -> None:
        secrets = {name: value for name, value in ENVIRONMENT.items() if name.endswith(("_STRING", "_KEY", "_TOKEN", "_KEY_ID"))}
        assert {value.rpartition(":")[2] for value in secrets.values()} == {"..."}

    def test_prefects_variables_exist_and_equal_those_of_the_worker(self) -> None:
        names = {name for name in ENVIRONMENT if name.startswith("PREFECT_")}
        assert names <= set(_get_valid_setting_names(Settings))
        told = config.worker_environment(config.StackConfig(), {})
        for name in names - {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING"}:
            assert ENVIRONMENT[name] == told[name]
