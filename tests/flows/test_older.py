"""Images are assigned to the clusters of a store written by version 0.1. `tests/store/test_older.py` tests all that needs no flow."""

from pathlib import Path

from gsec_core.results import finishing
from gsec_core.stages.base import Context
from gsec_core.store import Store

from ..command import asking, gsec_here
from ..stages.test_golden import write_colours
from ..store.test_older import older_run


def test_new_images_are_assigned_to_the_clusters_of_an_older_run(server: str, tmp_path: Path) -> None:
    older = older_run(tmp_path)
    new = write_colours(tmp_path / "new")
    with asking(server):
        gsec_here("assign", new, "--run", older.run.id, "--store", older.run.files.url)
    assigned = next(run for run in Store(older.run.files).runs() if run.request().get("of_run"))
    context = Context.of(assigned, assigned.config())
    rows = finishing.assignments(context).read_all(context.run.table("assigned")[1])
    theirs = {uri: cluster for table in rows for uri, cluster in zip(table["uri"].to_pylist(), table["cluster"].to_pylist(), strict=True)}
    assert len({frozenset(uri for uri in theirs if theirs[uri] == cluster) for cluster in range(3)}) == 3
    assert all(len({cluster for uri, cluster in theirs.items() if uri.startswith(colour)}) == 1 for colour in ("red", "green", "blue"))
