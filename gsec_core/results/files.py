"""Files for a user: a file or folder appears under its name when it is whole."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gsec_core.errors import Refused


def make_folder(to: Path) -> None:
    """Make the folder that a user named, if it is not there. Raises Refused if it cannot be made."""
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--to {to}: no folder can be made there ({error.strerror}). Name another.") from None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
    os.replace(partial, path)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A new folder that becomes ``path`` when it is whole. What a killed process left of it is removed first."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    partial.rename(path)


def write_items(file: IO[bytes], items: Iterable[Any]) -> None:
    """What stands between the brackets of a JSON array, an item a line."""
    for number, item in enumerate(items):
        file.write((b",\n" if number else b"\n") + json.dumps(item).encode())


def write_entries(file: IO[bytes], entries: Iterable[tuple[str, Any]]) -> None:
    """What stands between the braces of a JSON object, an entry a line."""
    for number, (name, value) in enumerate(entries):
        file.write((b",\n" if number else b"\n") + json.dumps(name).encode() + b": " + json.dumps(value).encode())
