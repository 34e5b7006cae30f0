"""Records: the small JSON files of a store, as opposed to its tables."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from gsec_core.errors import BadRecord
from gsec_core.store.files import Files

T = TypeVar("T")


def to_json(value: object) -> bytes:
    """Encode a record as JSON with sorted keys, the form in which every record is written."""
    return json.dumps(value, indent=1, sort_keys=True).encode()


def read(files: Files, path: str, make: Callable[[dict[str, Any]], T], remedy: str) -> T:
    """Read the record at ``path`` and convert it with ``make``.

    Raises FileNotFoundError, or BadRecord with ``remedy`` in its message if the file is not JSON or ``make`` does not accept it.
    """
    data = files.read(path)
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}")
        return make(value)
    except (ValueError, TypeError, KeyError) as error:
        raise BadRecord(f"{files.location(path)}: it is not what gsec writes ({error}). {remedy}") from None
