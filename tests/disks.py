"""Simulates full disks, and a process without root's right to pass over file permissions."""

import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from gsec_core.stages import scratch
from gsec_core.store import files

T = TypeVar("T")


class Disk(Protocol):
    """A disk with a folder on it."""

    folder: Path

    def resize(self, size: int) -> None: ...


class CountedDisk:
    """Takes the place of ``os`` in modules of gsec: no more bytes are written below the folder than there is room for.

    It replaces the system calls, below all code of gsec, so it is as realistic as a simulated disk that needs no privileges can be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.room = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def resize(self, size: int) -> None:
        self.room = size

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data[: self._left(1)])

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(self.folder)):
            self._left(length)
        os.posix_fallocate(descriptor, offset, length)

    def _left(self, wanted: int) -> int:
        left = self.room - sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if left < wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return left


class MountedDisk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


def counted_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> CountedDisk:
    """A full disk at ``folder`` for this process's stores and scratch files."""
    disk = CountedDisk(folder)
    monkeypatch.setattr(files, "os", disk)
    monkeypatch.setattr(scratch, "os", disk)
    return disk


@contextmanager
def mounted_disk(folder: Path) -> Iterator[MountedDisk | None]:
    """A full disk mounted at ``folder``, for every process; None where mounting is not allowed, as it needs root."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield MountedDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a memory map may still be on it


def as_anyone(call: Callable[[], T]) -> T:
    """Run ``call`` without root's right to pass over file permissions, which the processes it starts lack too. Other users have no such right anyway.

    It runs in a thread: on Linux such rights belong to threads, and a right that is given up does not come back.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if os.geteuid() == 0:
                _give_up_passing_over_permissions()
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _give_up_passing_over_permissions() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    pr_capbset_drop, version_3, cap_dac_override, cap_dac_read_search = 24, 0x20080522, 1, 2
    for right in (cap_dac_override, cap_dac_read_search):  # so that a program started by root does not get the right back
        if libc.prctl(pr_capbset_drop, right, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    header, sets = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for index in range(3):  # effective, permitted, inheritable
        sets[index] &= ~(1 << cap_dac_override | 1 << cap_dac_read_search)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
