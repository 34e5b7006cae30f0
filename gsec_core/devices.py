"""Device and number of threads of torch and other native libraries, and use of memory."""

import ctypes
import json
import math
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from threadpoolctl import ThreadpoolController

from gsec_core.errors import Refused

if TYPE_CHECKING:
    from torch import dtype

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve(device: str, setting: str) -> str:
    """The device for torch: ``auto`` becomes cuda if available, else cpu. Raises Refused naming ``setting`` if there is no such device."""
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise Refused(f"{setting} = {json.dumps(device)}: choose `auto`, `cpu`, `cuda` or `cuda:N`.")
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    gpus = torch.cuda.device_count()
    if int(match[1] or 0) >= gpus:
        raise Refused(f"{setting} = {json.dumps(device)}: torch finds {gpus} GPUs here; `auto` uses the CPU if there is none.")
    return device


def check(device: str, setting: str) -> None:
    """Raises Refused as `resolve`. Does not import torch for ``auto`` and ``cpu``, which are available everywhere."""
    if device != "auto":
        resolve(device, setting)


def product_dtype(device: str) -> "dtype":
    """The number format of large matrix products in a training on ``device`` (not ``auto``).

    It is bfloat16 where the processor multiplies it, several times faster than float32, and float32 elsewhere. An older torch does not tell what a CPU can do.
    """
    import torch

    if device == "cpu":
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = features.get("avx512_bf16") or features.get("amx_bf16")
    else:
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def thread_count(threads: int) -> int:
    """Number of threads for a setting such as ``threads`` or ``encode.workers``; 0 means one per usable core.

    It is always set explicitly, since the last bits of sums depend on it.
    """
    return threads or usable_cores()


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity and the CPU quotas of its control groups (rounded up), at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))]))


def _quotas(membership: Path, mount: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of the control groups named in ``membership`` and of all their parents, for cgroup versions 1 and 2."""
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        # In a container the path may be that of the host, of which only the root is mounted here: missing folders are skipped.
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            yield from _quota(folder)
            if folder == root:
                break


def _quota(folder: Path) -> Iterator[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        files = [folder / name for name in names]
        if all(file.is_file() for file in files):
            quota, period = " ".join(file.read_text() for file in files).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


_WITH_POOLS = ("scipy.linalg._fblas", "sklearn.utils._openmp_helpers", "faiss.class_wrappers", "torch._C")
"""Modules that are loaded with, or right after, a library that has a thread pool; numpy's is always there."""


def native_threads(threads: int) -> AbstractContextManager[Any]:
    """Context manager that limits BLAS and OpenMP, which numpy and faiss use, to `thread_count` of the setting ``threads``."""
    limits: AbstractContextManager[Any] = _pools(tuple(name in sys.modules for name in _WITH_POOLS)).limit(limits=thread_count(threads))
    return limits


@cache
def _pools(loaded: tuple[bool, ...]) -> ThreadpoolController:
    """The thread pools of this process. Finding them takes ten milliseconds, so they are searched again only when another of `_WITH_POOLS` is loaded."""
    return ThreadpoolController()


def set_threads(threads: int) -> None:
    """Set the number of torch's threads in this process (0 = one per usable core). Torch has no setting for a single model."""
    import torch

    torch.set_num_threads(thread_count(threads))


@contextmanager
def threads_of_torch(most: int) -> Iterator[None]:
    """Limit torch to at most ``most`` threads in this process, and restore the number afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], device: str = "cpu") -> Iterator[Result]:
    """Yield the results of ``work``, which uses torch on ``device``, for ``items`` in order. On a CPU, items run in parallel with one torch thread each.

    Threads that share a small operation wait for each other at its end, so that another process on one core stops them all. Independent threads
    lose only the time of that core. A single item gets all threads. At most as many finished results as there are threads wait to be taken.
    """
    import torch

    left = list(items)
    threads = torch.get_num_threads()
    if device != "cpu" or threads == 1 or len(left) <= 1:
        yield from map(work, left)
        return
    with threads_of_torch(1), ThreadPoolExecutor(threads, thread_name_prefix="block", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        begun: deque[Future[Result]] = deque()
        for item in left:
            begun.append(pool.submit(work, item))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of returning it to the system at every free.

    Otherwise each layer of each batch causes page faults again, which take half of the processor time of a
    forward pass, and of a training step with many clusters. Does nothing with other C libraries, which have
    no mallopt.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def share_memory() -> None:
    """Limit glibc to two memory pools for all threads, since memory freed in one pool is not available to others. To be called before threads start."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        arena_max = -8  # malloc.h: M_ARENA_MAX
        libc.mallopt(arena_max, 2)


def return_freed_memory() -> None:
    """Return freed memory that glibc has kept to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
