"""Write files for a user: a file or folder appears under its name when it is complete."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gsec_core.errors import Refused


def make_folder(to: Path) -> None:
    """Make the folder that a user named, unless it exists. Raises Refused if it cannot be made, or not be written."""
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--to {to}: no folder can be made there ({error.strerror}). Name another.") from None
    if not os.access(to, os.W_OK):
        raise Refused(f"--to {to}: this user cannot write there. Name another folder.")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Context manager for writing a file that replaces ``path`` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
    os.replace(partial, path)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Context manager for filling a new folder that becomes ``path`` when the block ends without an error. Removes the leftovers of a killed process first."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    partial.rename(path)


def write_items(file: IO[bytes], items: Iterable[Any]) -> None:
    """Write the items of a JSON array, without the brackets, one on each line."""
    for number, item in enumerate(items):
        file.write((b",\n" if number else b"\n") + json.dumps(item).encode())


def write_entries(file: IO[bytes], entries: Iterable[tuple[str, Any]]) -> None:
    """Write the entries of a JSON object, without the braces, one on each line."""
    for number, (name, value) in enumerate(entries):
        file.write((b",\n" if number else b"\n") + json.dumps(name).encode() + b": " + json.dumps(value).encode())
