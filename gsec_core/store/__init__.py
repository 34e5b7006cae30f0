"""The store: corpora, their tables, and runs, on any fsspec URL. The only package that knows paths.

``CORPUS/images`` and ``CORPUS/generations`` (see `corpus`), ``CORPUS/TABLE/FINGERPRINT`` (see `shards`), ``runs``
(see `runs`), ``published`` (see `publications`). Nothing in a store is ever unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused, Unreachable
from gsec_core.store import records
from gsec_core.store.corpus import NAME, Corpus, Generation
from gsec_core.store.files import Files, open_files
from gsec_core.store.publications import DIRECTORY as PUBLISHED
from gsec_core.store.publications import Publication, Publications
from gsec_core.store.runs import Run, fingerprint, now, run_id
from gsec_core.store.shards import Shards

__all__ = ["Corpus", "Generation", "Publication", "Publications", "Run", "Shards", "Store", "fingerprint"]

_RESERVED = {"runs", PUBLISHED}


@dataclass(frozen=True)
class Store:
    """Everything gsec keeps."""

    files: Files

    @classmethod
    def open(cls, url: str) -> "Store":
        """The store at a folder or fsspec URL; it need not exist yet. Raises Refused for an address that cannot be one."""
        return cls(open_files(url))

    @property
    def url(self) -> str:
        return self.files.url

    def check_writable(self) -> None:
        """Raises Refused if nothing can be written here."""
        probe = f"runs/.probe-{uuid4().hex}"
        try:
            self.files.create(probe, b"gsec")
            self.files.remove(probe)
        except (OSError, Unreachable) as error:
            raise Refused(f"--store {self.url}: cannot be written ({error}). Choose another store or mend its permissions.") from None

    def corpus(self, name: str) -> Corpus:
        """A corpus by name; it need not exist yet. Raises Refused for a name that cannot be one."""
        if not NAME.fullmatch(name) or name in _RESERVED:
            raise Refused(f"--corpus {name}: a corpus is named with a-z, 0-9, '.', '_' and '-', at most 100 of them, and not {' or '.join(sorted(_RESERVED))}.")
        return Corpus(self.files, name)

    def corpora(self) -> list[Corpus]:
        """All corpora, by name."""
        names = sorted(self.files.directories("") - _RESERVED)
        return [Corpus(self.files, name) for name in names if "corpus.json" in self.files.files(name)]

    def run(self, id: str) -> Run:
        """A run by its id or an unambiguous beginning of it. Raises Refused if there is none."""
        found = [name for name in self.files.directories("runs") if name.startswith(id)]
        if len(found) != 1:
            problem = "there is no such run" if not found else f"{len(found)} runs begin like that"
            raise Refused(f"--run {id}: {problem} in {self.url}. `gsec status` lists the runs.")
        return Run(self.files, found[0])

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        runs = [Run(self.files, name) for name in self.files.directories("runs")]
        return sorted((run for run in runs if run.exists()), key=lambda run: str(run.request()["created"]))

    def request_run(
        self,
        config: PipelineConfig,
        corpus: Corpus,
        generation: int,
        stages: Mapping[str, Any],
        of_run: str | None = None,
        pipeline: str | None = None,
        counting: str | None = None,
    ) -> Run:
        """The run of this request, with the redo counters of now: made if it is the first of its kind, else found again.

        ``stages`` is what it takes to finish it; see `runs.run_id`. ``of_run`` is the run whose clusters the images are
        assigned to; ``pipeline`` is the name of the one whose published clusters a run with clusters of its own continues;
        ``counting`` is the run that found its number of clusters, if nobody gave it.
        """
        redo, published = corpus.redo_counters(), self._published(pipeline)
        run = self._wanted_run(corpus, generation, stages, pipeline, redo, published)
        record = {
            "config": config.model_dump(mode="json"),
            "corpus": corpus.name,
            "generation": generation,
            "redo": dict(redo),
            "stages": list(stages),
            "of_run": of_run,
            "counting": counting,
            "previous": published.previous if published is not None else None,
            "created": now(),
        }
        self.files.create(f"{run.directory}/request.json", records.to_json(record))
        return run

    def wanted_run(self, corpus: Corpus, generation: int, stages: Mapping[str, Any], pipeline: str | None = None) -> Run:
        """The run that `request_run` would make or find; it need not exist."""
        return self._wanted_run(corpus, generation, stages, pipeline, corpus.redo_counters(), self._published(pipeline))

    def _wanted_run(
        self, corpus: Corpus, generation: int, stages: Mapping[str, Any], pipeline: str | None, redo: Mapping[str, int], published: Publication | None
    ) -> Run:
        """What is published is found again by its own request, and otherwise is what the clusters of a new run continue."""

        def run_after(previous: Mapping[str, Any] | None) -> Run:
            return Run(self.files, run_id(stages, corpus.name, generation, redo, pipeline, previous))

        if published is None:
            return run_after(None)
        last = Run(self.files, published.run_id)
        if not last.exists():
            raise Refused(
                f"pipeline = {published.pipeline}: run {last.id}, which is published, is not in {self.url} any more. "
                f"Publish another with gsec publish --run ID, or choose another --pipeline."
            )
        return last if run_after(last.request().get("previous")) == last else run_after(published.previous)

    def _published(self, pipeline: str | None) -> Publication | None:
        return None if pipeline is None else self.publications.newest(pipeline)

    @property
    def publications(self) -> Publications:
        """What is published."""
        return Publications(self.files)

    def published_runs(self) -> set[str]:
        """Ids of the runs that are published."""
        newest = (self.publications.newest(pipeline) for pipeline in self.publications.pipelines())
        return {publication.run_id for publication in newest if publication is not None}

    def path_of(self, shard_path: str) -> tuple[Shards, str]:
        """The shards and the name behind a path that a BadShard names."""
        directory, _, name = shard_path.rpartition("/")
        return Shards(self.files, directory), name.removesuffix(".parquet")
