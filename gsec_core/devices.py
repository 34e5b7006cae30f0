"""Which device torch computes on, and with how many threads."""

import ctypes
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from gsec_core.errors import Refused

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve(device: str, setting: str) -> str:
    """``auto`` as cuda if there is one, else cpu; any other device as it is. Raises Refused naming ``setting`` if there is no such device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise Refused(f"{setting} = {json.dumps(device)}: choose `auto`, `cpu`, `cuda` or `cuda:N`.")
    gpus = torch.cuda.device_count()
    if device != "cpu" and int(match[1] or 0) >= gpus:
        raise Refused(f"{setting} = {json.dumps(device)}: torch finds {gpus} GPUs here; `auto` uses the CPU if there is none.")
    return device


def thread_count(threads: int) -> int:
    """What a setting ``threads`` means: 0 is one a usable core. Sums depend on it in their last bits, so it is never left to what a process happens to have."""
    return threads or usable_cores()


def usable_cores() -> int:
    """Cores that this process may use: by its affinity and by the CPU quota of its control groups, rounded up, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))]))


def _quotas(membership: Path, mount: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of the control groups that ``membership`` names and of all above them, versions 1 and 2."""
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        # In a container the path may be the host's, of which only the root is mounted here: what is not there is passed over.
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


def set_threads(threads: int) -> None:
    """Let this process's torch compute with ``threads`` (0 = one a usable core). Torch has no narrower setting."""
    import torch

    torch.set_num_threads(thread_count(threads))


@contextmanager
def threads_of_torch(most: int) -> Iterator[None]:
    """Inside, this process's torch computes with at most ``most`` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], device: str = "cpu") -> Iterator[Result]:
    """``work``, which torch does on ``device``, on each of ``items``, in their order; on a CPU several at once, each with one of torch's threads.

    Threads that share a small operation wait for each other at its end, and one neighbour who wants a core stops them all. Those that share
    nothing lose what the neighbour takes and no more. A single item has all threads. No more results than threads wait to be taken.
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

    Else each layer of each batch faults its pages in again: half of the processor time of a
    forward pass, and of a step of training with many clusters. Other C
    libraries have no mallopt, and are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def share_memory() -> None:
    """Let the threads of a process with many take memory from two pools of glibc's: else each keeps what it freed from the others. Before they begin."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        arena_max = -8  # malloc.h: M_ARENA_MAX
        libc.mallopt(arena_max, 2)


def return_freed_memory() -> None:
    """Give memory that was freed, and that glibc kept, back to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
