"""What is published: for each pipeline a chain of publications, and ``published/PIPELINE.json``, the newest of them, for whoever reads the result.

``published/PIPELINE/NUMBER.json`` is created once, so that of two runs that would publish after the same one the first wins and
the other sees it. ``published/PIPELINE.json`` is the only file of a store that is ever replaced.
"""

from dataclasses import asdict, dataclass
from typing import Any

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

    None for the first, and for one that somebody went back to."""
    left: str | None
    """Fingerprint of the assignments that somebody went back from to these; else None."""
    at: str
    """UTC."""

    @property
    def previous(self) -> dict[str, Any]:
        """What the next run is to know of it."""
        return {"run_id": self.run_id, "next_key": self.next_key}


@dataclass(frozen=True)
class Publications:
    """All that a store publishes."""

    files: Files

    def pipelines(self) -> list[str]:
        """Names of the pipelines that have published anything."""
        return sorted(self.files.directories(DIRECTORY))

    def newest(self, pipeline: str) -> Publication | None:
        """What is published; None if nothing ever was. Raises Refused for a name that cannot be one."""
        numbers = self._numbers(pipeline)
        return self._read(pipeline, max(numbers)) if numbers else None

    def all(self, pipeline: str) -> list[Publication]:
        """Everything that ever was published, oldest first."""
        return [self._read(pipeline, number) for number in sorted(self._numbers(pipeline))]

    def add(self, publication: Publication) -> bool:
        """Publish. False, and nothing is changed, if another run was published under this number.

        Under it may stand the same run: another worker was on it too, or the answer of an object store to the first try was lost.
        """
        created = self.files.create(self._path(publication.pipeline, publication.number), _record(publication))
        if not created and self._read(publication.pipeline, publication.number).run_id != publication.run_id:
            return False
        self.point(publication.pipeline)
        return True

    def point(self, pipeline: str) -> None:
        """Let ``published/PIPELINE.json`` be the newest publication; whoever made that may have been killed before this.

        Of two who do so at once each looks again after it has written, so that the slower one leaves no older publication there.
        """
        name = f"{pipeline}.json"
        while (newest := self.newest(pipeline)) is not None:
            record = _record(newest)
            if name in self.files.files(DIRECTORY) and self.files.read(f"{DIRECTORY}/{name}") == record:
                return
            self.files.replace(f"{DIRECTORY}/{name}", record)

    def _numbers(self, pipeline: str) -> list[int]:
        check_pipeline(pipeline)
        return [int(name.removesuffix(".json")) for name in self.files.files(f"{DIRECTORY}/{pipeline}")]

    def _read(self, pipeline: str, number: int) -> Publication:
        remedy = "Remove this file: what was published before counts then, and gsec publish --run ID makes another."
        return records.read(self.files, self._path(pipeline, number), lambda record: Publication(**record), remedy)

    @staticmethod
    def _path(pipeline: str, number: int) -> str:
        return f"{DIRECTORY}/{pipeline}/{number:08d}.json"


def _record(publication: Publication) -> bytes:
    return records.to_json(asdict(publication))


def check_pipeline(name: str) -> None:
    """Raises Refused for a name that cannot be a pipeline's."""
    if not NAME.fullmatch(name) or name.endswith(".json"):  # what another publishes has such a name
        raise Refused(f"pipeline = {name}: a pipeline is named with a-z, 0-9, '.', '_' and '-', at most 100 of them, and not as a .json file.")
