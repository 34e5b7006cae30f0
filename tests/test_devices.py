"""How many threads gsec computes with, and how they wait for each other."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from gsec_core.devices import _quotas, in_threads, product_dtype, thread_count, threads_of_torch, usable_cores


def group(mount: Path, path: str, **files: str) -> None:
    folder = mount / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.", 1)).write_text(text)


def quotas(tmp_path: Path, membership: str) -> list[float]:
    (tmp_path / "cgroup").write_text(membership)
    return sorted(_quotas(tmp_path / "cgroup", tmp_path / "mount"))


def test_a_cpu_quota_of_cgroups_version_2_is_read(tmp_path: Path) -> None:
    group(tmp_path / "mount", "system.slice/gsec.service", cpu_max="150000 100000\n")
    assert quotas(tmp_path, "0::/system.slice/gsec.service\n") == [1.5]


def test_a_cpu_quota_of_a_parent_group_is_read(tmp_path: Path) -> None:
    group(tmp_path / "mount", "pod", cpu_max="200000 100000\n")
    group(tmp_path / "mount", "pod/container", cpu_max="max 100000\n")
    assert quotas(tmp_path, "0::/pod/container\n") == [2.0]


def test_the_quota_of_a_containers_root_is_read_although_the_membership_has_the_hosts_path(tmp_path: Path) -> None:
    group(tmp_path / "mount", "", cpu_max="50000 100000\n")
    assert quotas(tmp_path, "0::/docker/0123456789abcdef\n") == [0.5]


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_a_cpu_quota_of_cgroups_version_1_is_read(tmp_path: Path, controllers: str) -> None:
    group(tmp_path / "mount", f"{controllers}/docker/abc", cpu_cfs_quota_us="300000\n", cpu_cfs_period_us="100000\n")
    group(tmp_path / "mount", controllers, cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert quotas(tmp_path, f"5:memory:/docker/abc\n4:cpuset:/\n3:{controllers}:/docker/abc\n") == [3.0]


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert list(_quotas(tmp_path / "absent", tmp_path)) == []


def test_cpu_affinity_limits_the_automatic_thread_count_but_not_a_given_one() -> None:
    one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    code = f"{one}; from gsec_core.devices import thread_count; print(thread_count(0), thread_count(3))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["1", "3"]


@pytest.mark.parametrize(("cpu", "expected"), [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)])
def test_products_are_in_bfloat16_where_the_cpu_multiplies_it(cpu: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    assert product_dtype("cpu") == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert product_dtype("cpu") == torch.float32, "an older torch cannot tell"


def test_products_on_a_gpu_are_in_the_format_that_this_gpu_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert product_dtype("cuda:1") == torch.float32
    assert asked == ["cuda:1"]


def test_libraries_that_are_loaded_later_are_limited_too() -> None:
    code = """
from gsec_core.devices import native_threads
import threadpoolctl
for library in ("numpy", "scipy.linalg", "sklearn.cluster", "faiss", "torch"):
    __import__(library)
    with native_threads(1):
        threads = [found["num_threads"] for found in threadpoolctl.threadpool_info()]
    assert set(threads) == {1}, (library, threads)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_given_thread_count_is_used_and_zero_means_all_usable_cores() -> None:
    assert thread_count(7) == 7
    assert thread_count(0) == usable_cores() >= 1


def test_torch_gets_a_limited_number_of_threads_and_its_old_number_back_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores() + 3)
    try:
        with threads_of_torch(usable_cores()):
            assert torch.get_num_threads() == usable_cores()
        assert torch.get_num_threads() == usable_cores() + 3
    finally:
        torch.set_num_threads(before)


UNSET: dict[str, str] = {}


@pytest.mark.parametrize(
    ("module", "users", "found"),
    [
        *((module, UNSET, "60000") for module in ("gsec_core", "gsec_core.methods.gsec.estimator", "flows.cli")),
        ("gsec_core", {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ("gsec_core", {"GOMP_SPINCOUNT": "5"}, "5"),
    ],
)
def test_openmp_threads_spin_only_briefly_unless_the_user_has_set_it(module: str, users: dict[str, str], found: str) -> None:
    """Importing the module sets GOMP_SPINCOUNT, which OpenMP reads when it is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")} | users
    code = f"import os, {module}; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == found


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_several_items_run_with_one_torch_thread_each_and_a_single_item_with_all() -> None:
    assert list(in_threads(lambda item: (item, torch.get_num_threads()), range(5))) == [(item, 1) for item in range(5)]
    assert list(in_threads(lambda item: (item, torch.get_num_threads()), [0])) == [(0, 2)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_no_more_items_are_begun_while_earlier_results_wait_to_be_taken() -> None:
    begun: list[int] = []
    results = in_threads(begun.append, range(100))
    next(results)
    assert len(begun) <= 3
    results.close()
    assert len(begun) <= 3, "the remaining items are not begun"


@pytest.mark.usefixtures("two_threads")
def test_the_error_of_an_item_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 / item, [1, 0, 2]))
