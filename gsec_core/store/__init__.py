"""The store: corpora, their tables, and runs, on any fsspec URL. No other package knows the paths in a store.

Layout: ``CORPUS/images`` and ``CORPUS/generations`` (see `corpus`), ``CORPUS/TABLE/FINGERPRINT`` (see `shards`), ``vocabularies`` (tables that
all corpora share), ``runs`` (see `runs`), ``published`` (see `publications`), ``curation`` (see `gsec_core.curation`). Nothing in a store is
ever unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused, Unreachable
from gsec_core.store import records
from gsec_core.store.corpus import NAME, SHARED, Corpus, Generation
from gsec_core.store.files import Files, open_files
from gsec_core.store.publications import DIRECTORY as PUBLISHED
from gsec_core.store.publications import Finished, Publication, Publications
from gsec_core.store.runs import Run, fingerprint, now, run_id
from gsec_core.store.shards import Shards

__all__ = ["Corpus", "Finished", "Generation", "Publication", "Publications", "Run", "Shards", "Store", "fingerprint"]

CURATION = "curation"
"""Folder of the curation logs, which record what people said about clusters; see `gsec_core.curation.log`."""

_RESERVED = {"runs", PUBLISHED, SHARED, CURATION}


@dataclass(frozen=True)
class Store:
    """Entry point to all corpora, runs, publications and tables below one folder or URL."""

    files: Files

    @classmethod
    def open(cls, url: str) -> "Store":
        """The store at a folder or fsspec URL; it need not exist yet. Raises Refused for an address that cannot be one."""
        return cls(open_files(url))

    @property
    def url(self) -> str:
        """The folder or URL of the store, without a slash at its end."""
        return self.files.url

    def check_writable(self) -> None:
        """Write and remove a probe file. Raises Refused if the store cannot be written."""
        probe = f"runs/.probe-{uuid4().hex}"
        try:
            self.files.create(probe, b"gsec")
            self.files.remove(probe)
        except (OSError, Unreachable) as error:
            raise Refused(f"--store {self.url}: cannot be written ({error}). Choose another store, or correct its permissions.") from None

    def corpus(self, name: str) -> Corpus:
        """A corpus by name; it need not exist yet. Raises Refused for a name that cannot be one."""
        if not NAME.fullmatch(name) or name in _RESERVED:
            raise Refused(
                f"--corpus {name}: a corpus's name has a-z, 0-9, '.', '_' and '-', at most 100 characters, and is not {' or '.join(sorted(_RESERVED))}."
            )
        return Corpus(self.files, name)

    def corpora(self) -> list[Corpus]:
        """All corpora, by name."""
        names = sorted(self.files.directories("") - _RESERVED)
        return [Corpus(self.files, name) for name in names if "corpus.json" in self.files.files(name)]

    def shared_tables(self) -> list[Shards]:
        """The tables that all corpora share, one `Shards` for each fingerprint."""
        return Corpus(self.files, SHARED).tables()

    def run(self, id: str) -> Run:
        """Find a run by its id, by an unambiguous beginning of the id, or by ``published/PIPELINE``: the run that this pipeline publishes now.

        Raises Refused if the id is empty, or if there is no such run, or more than one.
        """
        if id.startswith(f"{PUBLISHED}/"):
            return self._published_run(id)
        if not id:  # every id begins like this
            raise Refused("--run: the id is empty. `gsec status` lists the runs.")
        found = [name for name in self.files.directories("runs") if name.startswith(id)]
        if len(found) != 1:
            problem = "there is no such run" if not found else f"{len(found)} runs begin like this"
            raise Refused(f"--run {id}: {problem} in {self.url}. `gsec status` lists the runs.")
        return Run(self.files, found[0])

    def _published_run(self, name: str) -> Run:
        newest = self.publications.newest(name.removeprefix(f"{PUBLISHED}/"))
        if newest is None:
            known = ", ".join(f"{PUBLISHED}/{pipeline}" for pipeline in self.publications.pipelines())
            raise Refused(f"--run {name}: {self.url} publishes nothing under this name; there is {known or 'nothing published yet'}.")
        self.check_there(newest)
        return Run(self.files, newest.run_id)

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
        """Return the run of this request with the current redo counters. The run is created unless the same request was made before.

        ``stages`` are the stages that finish the run; see `runs.run_id`. ``of_run`` is the run whose clusters the images are
        assigned to. ``pipeline`` is the pipeline whose published clusters the run continues, if it makes clusters of its own.
        ``counting`` is the run that found the number of clusters, if the user gave none.
        """
        redo = corpus.redo_counters()
        run, previous = self.wanted_run(corpus, generation, stages, pipeline, redo)
        record = {
            "config": config.model_dump(mode="json"),
            "corpus": corpus.name,
            "generation": generation,
            "redo": dict(redo),
            "stages": list(stages),
            "identity": dict(stages),
            "of_run": of_run,
            "counting": counting,
            "previous": previous,
            "created": now(),
        }
        self.files.create(f"{run.directory}/request.json", records.to_json(record))
        return run

    def wanted_run(
        self, corpus: Corpus, generation: int, stages: Mapping[str, Any], pipeline: str | None, redo: Mapping[str, int]
    ) -> tuple[Run, dict[str, Any] | None]:
        """The run that `request_run` would create or find, and the `Publication.previous` of the publication whose clusters it continues, or None.

        Nothing is written, and the run need not exist. If the request is that of the published run itself, that run is returned, even if its directory was
        lost. Any other request is a new run, which continues the published one.
        """

        def run_after(previous: Mapping[str, Any] | None) -> Run:
            return Run(self.files, run_id(stages, corpus.name, generation, redo, pipeline, previous))

        published = None if pipeline is None else self.publications.newest(pipeline)
        if published is None:
            return run_after(None), None
        last = Run(self.files, published.run_id)
        if last.exists():
            continued = [last.request().get("previous")]
        else:
            continued = [None, *(former.previous for former in self.publications.newest_first(published.pipeline))]
        for previous in continued:
            if run_after(previous) == last:
                return last, previous
        self.check_there(published)
        return run_after(published.previous), published.previous

    @property
    def publications(self) -> Publications:
        """All publications of the store."""
        return Publications(self.files)

    def published_runs(self) -> set[str]:
        """Ids of the runs that are published now."""
        return {publication.run_id for publication in self.published()}

    def published(self) -> list[Publication]:
        """The newest publication of each pipeline."""
        newest = (self.publications.newest(pipeline) for pipeline in self.publications.pipelines())
        return [publication for publication in newest if publication is not None]

    def check_there(self, publication: Publication) -> None:
        """Raises Refused if the published run is no longer in the store."""
        if not Run(self.files, publication.run_id).exists():
            raise Refused(
                f"pipeline = {publication.pipeline}: run {publication.run_id}, which is published, is no longer in {self.url}. "
                "If its images are the same, repeat the gsec run that made it. Or publish another run with gsec publish --run ID, "
                f"or remove {self.files.location(self.publications.path(publication.pipeline, publication.number))}, to go back to the publication before it."
            )

    def shard_at(self, path: str) -> tuple[Shards, str]:
        """The `Shards` that a shard with this path, as a BadShard gives it, belongs to, and the shard's name."""
        shards = Shards(self.files, path.rpartition("/")[0])
        return shards, shards.name_of(path)
