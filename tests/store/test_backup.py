"""A copy of a store, made by the commands of docs/operations.md while nights go on, is a store to go on with."""

import re
import shutil
from pathlib import Path

from gsec_core.config import PipelineConfig
from gsec_core.stages.ingest import ingest, open_images
from gsec_core.store import Publication, Store, fingerprint
from gsec_core.tables import EMBEDDINGS_TABLE

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def night(source: Path, store: Path, number: int) -> int:
    """Add an image, list the source, begin and publish a run. Returns the number of images of the run."""
    (source / f"{number}.jpg").write_bytes(bytes([number]))
    config, place = PipelineConfig(source=str(source), store=str(store), corpus="photos"), Store.open(str(store))
    corpus = place.corpus("photos")
    generation, _ = ingest(corpus, open_images(str(source), config.ingest), config.ingest, [], at_least=1)
    run = place.request_run(config, corpus, generation.number, {"encode": [1, {}]}, pipeline="photos")
    run.begin_stage("encode", fingerprint("encode", 1, {}, [], 0), {EMBEDDINGS_TABLE: generation.shard_names})
    newest = place.publications.newest("photos")
    following = 1 if newest is None else newest.number + 1
    assert place.publications.add(Publication("photos", following, run.id, "photos", generation.number, "", 0, None, None, ""))
    return corpus.live_rows(generation).num_rows


def test_a_copy_made_while_nights_go_on_is_a_store_to_go_on_with(tmp_path: Path) -> None:
    source, store, backup = tmp_path / "in", tmp_path / "store", tmp_path / "backup"
    source.mkdir()
    assert night(source, store, 0) == 1
    commands = re.findall(r"^rsync -a (.*) BACKUP/$", DOCS.read_text(), re.MULTILINE)
    for number, command in enumerate(commands, 1):
        left_out = re.findall(r"--exclude=/(\w+)", command)
        names = [path.name for path in store.iterdir() if path.name not in left_out] if left_out else [command.removeprefix("STORE/")]
        for name in names:
            shutil.copytree(store / name, backup / name)
        night(source, store, number)
    assert {path.name for path in backup.iterdir()} == {path.name for path in store.iterdir()}
    shutil.rmtree(store)
    backup.rename(store)
    count = len(commands) + 1
    assert [night(source, store, number) for number in (count, count + 1)] == [count + 1, count + 2]
