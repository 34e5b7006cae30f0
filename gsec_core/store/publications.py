"""What is published: for each pipeline a chain of publications, and ``published/PIPELINE.json``, the newest of them, for programs that read the result.

``published/PIPELINE/NUMBER.json`` is created once, so that of two runs that would publish after the same one the first wins and
the other sees it. ``published/PIPELINE.json`` is the only record that is ever replaced: it holds the newest publication, and what is said beside it
(see `gsec_core.curation.published`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.store import records
from gsec_core.store.corpus import NAME
from gsec_core.store.files import Files

DIRECTORY = "published"


@dataclass(frozen=True)
class Publication:
    """One clustering that was, or is, the published one of its pipeline."""

    pipeline: str
    number: int
    """From 1, in the order of publishing."""
    run_id: str
    corpus: str
    generation: int
    assignments: str
    """Fingerprint of its table `assignments`."""
    next_key: int
    """The first cluster key that was never given."""
    moved: float | None
    """Share of the images that it has in common with the clustering that it continues that have another key now.

    None for the first, for one that a user went back to, and if they have no image in common."""
    left: str | None
    """Fingerprint of the assignments that a user went back from to these; else None."""
    at: str
    """UTC."""

    @property
    def previous(self) -> dict[str, Any]:
        """What the next run is to know of it."""
        return {"run_id": self.run_id, "next_key": self.next_key}


More = Callable[[Publication, Mapping[str, Any]], Mapping[str, Any]]
"""Of the newest publication, and of what ``published/PIPELINE.json`` says beside it now, what it is to say beside it."""


def _as_it_was(newest: Publication, now: Mapping[str, Any]) -> Mapping[str, Any]:
    return now


@dataclass(frozen=True)
class Publications:
    """All that a store publishes."""

    files: Files

    def pipelines(self) -> list[str]:
        """Names of the pipelines that have published anything. Whatever else lies beside them is passed over."""
        return sorted(name for name in self.files.directories(DIRECTORY) if _is_pipeline(name))

    def newest(self, pipeline: str) -> Publication | None:
        """What is published; None if nothing ever was. Raises Refused for a name that cannot be one."""
        numbers = self.numbers(pipeline)
        return self.read(pipeline, max(numbers)) if numbers else None

    def newest_first(self, pipeline: str) -> Iterator[Publication]:
        """Everything that ever was published, one after the other."""
        return (self.read(pipeline, number) for number in sorted(self.numbers(pipeline), reverse=True))

    def add(self, publication: Publication, more: More = _as_it_was) -> bool:
        """Publish. False, and nothing is changed, if another run was published under this number.

        Under it may stand the same run: another worker was on it too, or the answer of an object store to the first try was lost.
        """
        created = self.files.create(self.path(publication), _record(publication))
        if not created and self.read(publication.pipeline, publication.number).run_id != publication.run_id:
            return False
        self.point(publication.pipeline, more)
        return True

    def point(self, pipeline: str, more: More = _as_it_was) -> None:
        """Let ``published/PIPELINE.json`` be the newest publication and ``more``; the process that made that may have been killed before this.

        Of two who do so at once each looks again after it has written, so that the slower one leaves no older publication there, nor older words beside it.
        """
        while (newest := self.newest(pipeline)) is not None:
            now, record = self.pointer(pipeline), asdict(newest)
            beside = {name: value for name, value in now.items() if name not in record} if now.items() >= record.items() else {}
            wanted = {**more(newest, beside), **record}
            if now == wanted:
                return
            self.files.replace(f"{DIRECTORY}/{pipeline}.json", records.to_json(wanted))

    def pointer(self, pipeline: str) -> dict[str, Any]:
        """What ``published/PIPELINE.json`` says; nothing if it is not there, or is damaged."""
        if f"{pipeline}.json" not in self.files.files(DIRECTORY):
            return {}
        try:
            said = json.loads(self.files.read(f"{DIRECTORY}/{pipeline}.json"))
        except (ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}

    def numbers(self, pipeline: str) -> list[int]:
        """Of everything that ever was published, in no order. One listing. Raises as `newest`."""
        check_pipeline(pipeline)
        return [int(name.removesuffix(".json")) for name in self.files.files(f"{DIRECTORY}/{pipeline}") if _PUBLICATION.fullmatch(name)]

    def read(self, pipeline: str, number: int) -> Publication:
        """One publication, which never changes. Raises BadRecord."""
        remedy = f"Remove this file: what was published before counts then. The next gsec run, or gsec publish --run ID, repairs {DIRECTORY}/{pipeline}.json."
        return records.read(self.files, self._path(pipeline, number), lambda record: Publication(**record), remedy)

    def path(self, publication: Publication) -> str:
        """Path of a publication's record below the store."""
        return self._path(publication.pipeline, publication.number)

    @staticmethod
    def _path(pipeline: str, number: int) -> str:
        return f"{DIRECTORY}/{pipeline}/{number:08d}.json"


_PUBLICATION = re.compile(r"\d+\.json")


def _record(publication: Publication) -> bytes:
    return records.to_json(asdict(publication))


def pipeline_of(config: PipelineConfig, corpus: str) -> str:
    """The name that runs of these settings publish under."""
    return corpus if config.pipeline is None else config.pipeline


def check_pipeline(name: str) -> None:
    """Raises Refused for a name that cannot be a pipeline's."""
    if not _is_pipeline(name):
        raise Refused(f"pipeline = {name}: a pipeline's name has a-z, 0-9, '.', '_' and '-', at most 100 characters, and does not end in .json.")


def _is_pipeline(name: str) -> bool:
    return NAME.fullmatch(name) is not None and not name.endswith(".json")  # what another publishes has such a name
