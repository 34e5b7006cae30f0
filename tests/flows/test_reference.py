"""The reference pages of the documentation agree with the code."""

from pathlib import Path

import pyarrow as pa
import pytest

from flows import reference
from gsec_core.store import Store
from gsec_core.tables import CAPTIONS_TABLE, schemas

from ..pictures import cluster, settings, write_pictures


@pytest.mark.parametrize("name", ["commands.md", "settings.md", "tables.md", "api.md"])
def test_the_reference_pages_are_up_to_date(name: str) -> None:
    assert (reference.DIRECTORY / name).read_text() == reference.pages()[name], "run make reference"


def test_every_table_of_a_run_has_the_schema_of_the_reference(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(40))
    context, counting = (cluster(settings(folder, tmp_path / "store", clusters=clusters))[0] for clusters in (2, "auto"))
    corpus = Store.open(str(tmp_path / "store")).corpora()[0]
    described = schemas(neighbors=1)  # of forty images
    found: dict[str, pa.Schema] = {"images": corpus.images.read(min(corpus.images.names())).schema}
    found[CAPTIONS_TABLE] = corpus.captions.read(min(corpus.captions.names())).schema
    (tmp_path / "words.txt").write_text("wall\nball\ndisc\npicture\n")
    text = {"source": "nouns", "vocabulary": f"file:{tmp_path / 'words.txt'}"}
    by_nouns = cluster(settings(folder, tmp_path / "store", clusters=2, text=text))[0]
    for run in (by_nouns.run, counting.run, context.run):
        for record in run.stages().values():
            for table, names in record["tables"].items():
                found[table] = run.place(record).table(table, record["fingerprint"]).read(names[0]).schema
    of_a_clip = {"enhancer", "enhanced", "enhanced_clusters"}  # see tests/stages/test_enhance.py
    of_asd = {"checkpoints", "transitions", "instance_groups"}  # see tests/methods/test_asd_runs.py
    of_many = {"neighbor_index"}  # from 50,000 images on
    assert found.keys() | {"assigned"} | of_a_clip | of_asd | of_many == described.keys()
    for table, schema in found.items():
        assert schema == described[table].remove_metadata(), table
