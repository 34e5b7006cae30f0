"""Publications: a numbered chain for each pipeline, and the file ``published/PIPELINE.json``, from which other programs read the newest one.

``published/PIPELINE/NUMBER.json`` is created once: if two runs try to publish after the same publication, the first one wins and the
other one notices. Two records are replaced: ``published/PIPELINE.json`` holds the newest publication and additional fields about its
curation (see `gsec_core.curation.published`), and ``published/PIPELINE/finished.json`` when a run of the pipeline last finished.
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
    """One clustering that a pipeline publishes now, or published earlier."""

    pipeline: str
    number: int
    """Counts the publications of the pipeline, from 1."""
    run_id: str
    corpus: str
    generation: int
    assignments: str
    """Fingerprint of the run's table `assignments`."""
    next_key: int
    """Smallest cluster key that no cluster of the pipeline has had yet; new clusters get keys from here on."""
    moved: float | None
    """Among the images in common with the clustering it continues, the share whose cluster key has changed.

    None for the first publication, for one that a user went back to, and if there is no image in common."""
    left: str | None
    """If a user went back to this run, the fingerprint of the assignments that were published until then; else None."""
    at: str
    """UTC."""

    @property
    def previous(self) -> dict[str, Any]:
        """The fields that a run which continues this publication has in its request."""
        return {"run_id": self.run_id, "next_key": self.next_key}


@dataclass(frozen=True)
class Finished:
    """The run of a pipeline that finished last: it may have been published, held back, or have found nothing new."""

    run_id: str
    corpus: str
    held: bool
    """Whether it was held back because something about it is suspicious."""
    at: str
    """When it finished, or found that it is still up to date, in UTC."""


More = Callable[[Publication, Mapping[str, Any]], Mapping[str, Any]]
"""Computes the additional fields of ``published/PIPELINE.json`` from the newest publication and the additional fields in the file now."""


def _as_it_was(newest: Publication, now: Mapping[str, Any]) -> Mapping[str, Any]:
    return now


@dataclass(frozen=True)
class Publications:
    """All publications of a store."""

    files: Files

    def pipelines(self) -> list[str]:
        """Names of the pipelines that have published anything. Folders that cannot be a pipeline's are ignored."""
        return sorted(name for name in self.files.directories(DIRECTORY) if is_pipeline(name))

    def newest(self, pipeline: str) -> Publication | None:
        """The newest publication of a pipeline, or None if there is none. Raises Refused for a name that cannot be a pipeline's."""
        numbers = self.numbers(pipeline)
        return self.read(pipeline, max(numbers)) if numbers else None

    def newest_first(self, pipeline: str) -> Iterator[Publication]:
        """All publications of a pipeline, newest first. Each is read when the iterator reaches it."""
        return (self.read(pipeline, number) for number in sorted(self.numbers(pipeline), reverse=True))

    def add(self, publication: Publication, more: More = _as_it_was) -> bool:
        """Publish. Returns False, and changes nothing, if another run was published under this number.

        The same run may already have this number: another worker published it, or the object store's reply to a first try was lost. That
        counts as success.
        """
        created = self.files.create(self.path(publication.pipeline, publication.number), records.to_json(asdict(publication)))
        if not created and self.read(publication.pipeline, publication.number).run_id != publication.run_id:
            return False
        self.point(publication.pipeline, more)
        return True

    def point(self, pipeline: str, more: More = _as_it_was) -> None:
        """Write the newest publication and the fields of ``more`` into ``published/PIPELINE.json``, unless they are there.

        This also repairs the file if the process that published was killed before it wrote the file. After each write the loop
        compares again: of two processes that write at once, the slower one cannot leave an older publication or older fields there.
        """
        while (newest := self.newest(pipeline)) is not None:
            now, record = self.pointer(pipeline), asdict(newest)
            beside = {name: value for name, value in now.items() if name not in record} if now.items() >= record.items() else {}
            wanted = {**more(newest, beside), **record}
            if now == wanted:
                return
            self.files.replace(f"{DIRECTORY}/{pipeline}.json", records.to_json(wanted))

    def pointer(self, pipeline: str) -> dict[str, Any]:
        """The content of ``published/PIPELINE.json``; an empty dict if the file is missing or damaged."""
        if f"{pipeline}.json" not in self.files.files(DIRECTORY):
            return {}
        try:
            said = json.loads(self.files.read(f"{DIRECTORY}/{pipeline}.json"))
        except (ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}

    def note_finished(self, pipeline: str, run: Finished) -> None:
        """Record that a run of the pipeline has finished."""
        self.files.replace(self._finished(pipeline), records.to_json(asdict(run)))

    def finished(self, pipeline: str) -> Finished | None:
        """The run that finished last; None if only an older gsec has run the pipeline. Raises BadRecord if the record is damaged."""
        try:
            return records.read(self.files, self._finished(pipeline), lambda record: Finished(**record), "Remove this file: the next gsec run writes it.")
        except FileNotFoundError:
            return None

    def numbers(self, pipeline: str) -> list[int]:
        """Numbers of all publications of a pipeline, unordered, from one directory listing. Raises Refused as `newest` does."""
        check_pipeline(pipeline)
        return [int(name.removesuffix(".json")) for name in self.files.files(f"{DIRECTORY}/{pipeline}") if _PUBLICATION.fullmatch(name)]

    def read(self, pipeline: str, number: int) -> Publication:
        """One publication. Its file never changes. Raises FileNotFoundError, or BadRecord if it is damaged."""
        remedy = f"Remove this file: what was published before counts then. The next gsec run, or gsec publish --run ID, repairs {DIRECTORY}/{pipeline}.json."
        return records.read(self.files, self.path(pipeline, number), lambda record: Publication(**record), remedy)

    @staticmethod
    def _finished(pipeline: str) -> str:
        return f"{DIRECTORY}/{pipeline}/finished.json"

    @staticmethod
    def path(pipeline: str, number: int) -> str:
        """Path of a publication's record below the store."""
        return f"{DIRECTORY}/{pipeline}/{number:08d}.json"


_PUBLICATION = re.compile(r"\d+\.json")


def pipeline_of(config: PipelineConfig, corpus: str) -> str:
    """Name of the pipeline that runs with these settings publish under: by default that of the corpus."""
    return corpus if config.pipeline is None else config.pipeline


def check_pipeline(name: str) -> None:
    """Raises Refused for a name that cannot be a pipeline's."""
    if not is_pipeline(name):
        raise Refused(f"pipeline = {name}: a pipeline's name has a-z, 0-9, '.', '_' and '-', at most 100 characters, and does not end in .json.")


def is_pipeline(name: str) -> bool:
    """Whether a pipeline can have this name."""
    return NAME.fullmatch(name) is not None and not name.endswith(".json")  # pipeline a has its file at a.json
