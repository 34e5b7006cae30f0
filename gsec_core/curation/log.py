"""The curation log of a pipeline: ``curation/PIPELINE/NUMBER.json``, one file for each act, created once and never changed.

If two processes write at once, one gets the number and the other the next one. So both acts are in the log, in the same order for all readers.
"""

import base64
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from gsec_core.errors import Unreachable
from gsec_core.store import CURATION, records
from gsec_core.store.files import Files
from gsec_core.store.publications import check_pipeline, is_pipeline

RENAME, DESCRIBE, MERGE, SPLIT, MOVE = "rename", "describe", "merge", "split", "move"
HIDE, SHOW, STAR, UNSTAR, UNDO = "hide", "show", "star", "unstar", "undo"

NEEDS: Mapping[str, tuple[frozenset[str], ...]] = {
    RENAME: (frozenset({"key", "text"}),),
    DESCRIBE: (frozenset({"key", "text"}),),
    MERGE: (frozenset({"key", "keys"}),),
    SPLIT: (frozenset({"key", "keys", "centres", "encoder"}),),
    MOVE: (frozenset({"key", "images"}),),
    **dict.fromkeys((HIDE, SHOW, STAR, UNSTAR), (frozenset({"key"}), frozenset({"images"}))),
    UNDO: (frozenset({"undoes"}),),
}
"""Kind -> the sets of fields, one of which an act of this kind has besides `kind`, `who`, `at` and `why`."""

FIRST_NEW = 1_000_000
"""The first key that splits give to new clusters. Keys of models are below."""

_ATTEMPTS = 100

_Key = Annotated[int, Field(ge=0, lt=2**31)]
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Image(NamedTuple):
    """An image as it was when an act named it."""

    id: _Id
    """Image id as in the tables, in hex digits."""
    content_hash: _Id


@dataclass(frozen=True)
class Act:
    """One correction by a person."""

    kind: str
    who: str
    at: str
    """UTC."""
    why: str | None = None
    key: _Key | None = None
    """The cluster that the act is about; for `merge` and `move` the one that receives the images, for `split` the one that is split."""
    keys: tuple[_Key, ...] = ()
    """For `merge`, the clusters that are merged into `key`; for `split`, the keys of all parts except the largest, which keeps `key`."""
    text: str | None = None
    """For `rename` and `describe`, the new name or description."""
    images: tuple[Image, ...] = ()
    """For `move`, and for `hide`, `show`, `star` and `unstar` of images instead of a cluster."""
    centres: str | None = None
    """For `split`; see `directions`."""
    encoder: str | None = None
    """For `split`, the encoder whose embeddings the centres were computed from."""
    undoes: int | None = None
    """For `undo`, the number of the act."""
    number: int = 0
    """Number in the log, from 1."""
    unknown: tuple[str, ...] = ()
    """Parts that this version of gsec does not know: ``kind``, or names of fields. If there are any, only kind, who, at and why are set besides."""

    @property
    def directions(self) -> NDArray[np.float32]:
        """Centres of the parts of a split, (parts, dim): first that of `key`, then those of `keys`."""
        values = np.frombuffer(base64.b64decode(self.centres or "", validate=True), "<f2").astype(np.float32)
        return values.reshape(len(self.keys) + 1, -1)


def packed(centres: NDArray[np.floating[Any]]) -> str:
    """Encode centres for `Act.centres`, as `Act.directions` reads them: half precision, in base64."""
    return base64.b64encode(np.ascontiguousarray(centres, "<f2").tobytes()).decode()


class Log:
    """The log of one pipeline. An object reads each act only once. Raises Refused for a name that cannot be a pipeline's."""

    def __init__(self, files: Files, pipeline: str) -> None:
        check_pipeline(pipeline)
        self.files = files
        self.pipeline = pipeline
        self._known: dict[int, Act] = {}

    @classmethod
    def pipelines(cls, files: Files) -> list[str]:
        """Names of the pipelines that have a log."""
        names = sorted(files.directories(CURATION))
        return [name for name in names if is_pipeline(name) and cls(files, name).numbers()]

    def numbers(self) -> list[int]:
        """Numbers of the acts, ascending, from one directory listing. Other files are ignored."""
        return self._numbers(_ACT)

    def read(self) -> list[Act]:
        """All acts, in order. Raises BadRecord for a file that is not what gsec writes. Parts that a newer gsec wrote are in `Act.unknown`."""
        numbers = self.numbers()
        unread = [number for number in numbers if number not in self._known]
        if self.files.readers == 1:
            self._known.update(zip(unread, map(self._read, unread), strict=True))
        elif unread:
            with ThreadPoolExecutor(self.files.readers, thread_name_prefix="curation") as pool:
                self._known.update(zip(unread, pool.map(self._read, unread), strict=True))
        return [self._known[number] for number in numbers]

    def append(self, make: Callable[[list[Act]], Act]) -> Act:
        """Add the act that ``make`` returns for the acts before it; if another act was added first, ``make`` is called again.

        Returns the act with its number. Raises Unreachable after too many attempts.
        """
        for _ in range(_ATTEMPTS):
            before = self.read()
            taken = [0, *(act.number for act in before[-1:]), *self._numbers(_SET_ASIDE)]
            act = replace(make(before), number=max(taken) + 1)
            if self.files.create(self._path(act.number), records.to_json(_record(act))):
                return act
        raise Unreachable(f"{self.files.location(self._path(act.number))}: {_ATTEMPTS} attempts to write it met another writer. Try again.")

    def _read(self, number: int) -> Act:
        remedy = f"Put a copy of it in its place, or rename it to {number:08d}.json.damaged: its act is then lost, and all others count."
        return records.read(self.files, self._path(number), lambda record: _act(number, record), remedy)

    def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
        return sorted(int(name[:8]) for name in self.files.files(f"{CURATION}/{self.pipeline}") if pattern.fullmatch(name))

    def _path(self, number: int) -> str:
        return f"{CURATION}/{self.pipeline}/{number:08d}.json"


_ACT = re.compile(r"\d{8}\.json")
_SET_ASIDE = re.compile(r"\d{8}\.json\.damaged")
"""Matches a damaged act that a user renamed. No other act may get its number: what was made from the log is told apart by number and count of the acts."""

_ADAPTER = TypeAdapter(Act)

_ALWAYS = frozenset({"kind", "who", "at", "why"})


def _record(act: Act) -> dict[str, Any]:
    """The fields of an act that are set, for its file."""
    written = {field.name: getattr(act, field.name) for field in fields(act) if field.name not in ("number", "unknown")}
    return {name: value for name, value in written.items() if value not in (None, ())}


def _act(number: int, record: dict[str, Any]) -> Act:
    """The act of a record. Raises ValueError if the record cannot be an act of any version of gsec."""
    known = NEEDS.get(record["kind"])
    told = frozenset(record) - _ALWAYS
    unknown = ("kind",) if known is None else tuple(sorted(told - frozenset().union(*known)))
    kept = _ALWAYS if unknown else frozenset(record)
    try:
        act = _ADAPTER.validate_python({name: value for name, value in record.items() if name in kept} | {"number": number, "unknown": unknown})
    except ValidationError as error:
        found = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from None
    if known is not None and not unknown:
        if told not in known:
            raise ValueError(f"a {act.kind} has {' or '.join(', '.join(sorted(needed)) for needed in known)}")
        if act.kind == SPLIT and not np.isfinite(act.directions).all():
            raise ValueError("its centres are not finite")
    return act
