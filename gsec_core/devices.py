"""Which device torch computes on, and with how many threads."""

import ctypes
import json
import os
import re

from gsec_core.errors import Refused


def resolve(device: str, setting: str) -> str:
    """``auto`` as cuda if there is one, else cpu; any other device as it is. Raises Refused naming ``setting`` if there is no such device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise Refused(f"{setting} = {json.dumps(device)}: there are `auto`, `cpu`, `cuda` and `cuda:N`.")
    gpus = torch.cuda.device_count()
    if device != "cpu" and int(match[1] or 0) >= gpus:
        raise Refused(f"{setting} = {json.dumps(device)}: torch sees {gpus} GPUs here; `auto` takes the CPU where there is none.")
    return device


def thread_count(threads: int) -> int:
    """What a setting ``threads`` means: 0 is one a core. Sums depend on it in their last bits, so it is never left to what a process happens to have."""
    return threads or os.cpu_count() or 1


def set_threads(threads: int) -> None:
    """Let this process's torch compute with ``threads`` (0 = one a core). Torch has no narrower setting."""
    import torch

    torch.set_num_threads(thread_count(threads))


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of returning it to the system at every free.

    Else each layer of each batch faults its pages in anew: half of the processor time of a
    forward pass, and of a step of training with many clusters. Other C
    libraries have no mallopt, and are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def return_freed_memory() -> None:
    """Give memory that was freed, and that glibc kept, back to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
