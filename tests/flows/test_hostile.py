"""Captions and file names that would be code in a page, a shell or a spreadsheet stay plain text throughout a run."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId

from flows.pipeline import run_pipeline
from gsec_core.results import finishing
from gsec_core.results.export import export
from gsec_core.sources.uris import to_uri
from gsec_core.stages.base import Context
from gsec_core.store import Store

from ..command import asking
from ..pictures import picture, settings

SCRIPT = "<script>alert(1)</script>"
NAMES = ("a\"b'c.jpg", "two\nlines.jpg", "=1+1.jpg", f"{SCRIPT.replace('/', '')}.jpg", "{{7*7}}.jpg", "-rf.jpg", "\u202egpj.exe.jpg")
CAPTIONS = (SCRIPT, "=1+1 ![x](http://127.0.0.1:9/x.png)", "</script><img src=x onerror=alert(1)>")


@dataclass
class Hostile:
    context: Context
    artifact: str
    """The data of the Prefect artifact "clusters"."""


def write_hostile(top: Path) -> dict[str, Any]:
    """Write pictures with hostile names and a table of hostile descriptions. Returns the settings of a run on them."""
    (top / "in").mkdir()
    for seed, name in enumerate(NAMES):
        picture(seed).save(top / "in" / name, "JPEG")
    (top / "in" / f"bad {SCRIPT.replace('/', '')}.jpg").write_text("no image")
    captions = [CAPTIONS[number % len(CAPTIONS)] for number in range(len(NAMES))]
    pq.write_table(pa.table({"uri": [to_uri(name) for name in NAMES], "said": captions}), top / "said.parquet")
    return {"source": top / "in", "store": top / "store", "max_rejects": 1.0, "describe": {"captioner": f"table:{top / 'said.parquet'}:said"}}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, server: str) -> Hostile:
    config = settings(**write_hostile(tmp_path_factory.mktemp("hostile")))
    with asking(server):
        state = run_pipeline(config, [], return_state=True)
        summary = state.result()
        with get_client(sync_client=True) as client:
            [table] = client.read_artifacts(
                artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["clusters"])),
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id])),
            )
    return Hostile(Context.of(Store.open(config.store).run(summary["run_id"]), config), str(table.data))


def test_the_report_shows_hostile_texts_escaped(hostile: Hostile) -> None:
    page = Path(finishing.summary(hostile.context)["report"]).read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "49.jpg" not in page


def test_the_prefect_artifact_holds_hostile_texts_as_plain_values(hostile: Hostile) -> None:
    rows = json.loads(hostile.artifact)
    assert {row["description"].replace("\u2060", "") for row in rows} <= {*CAPTIONS}
    assert not any(re.search(r"<\w|</|\]\(", row["description"]) for row in rows), "the dashboard would read the text as a tag or a link"


def test_csv_cells_that_a_spreadsheet_would_run_are_quoted_and_all_names_are_there(hostile: Hostile, tmp_path: Path) -> None:
    export(hostile.context, tmp_path)
    for name in ("assignments.csv", "clusters.csv", "unusable.csv"):
        for row in csv.DictReader((tmp_path / name).open(newline="")):
            assert not [cell for cell in row.values() if cell.lstrip("\u202e\u200b \n").startswith(("=", "+", "@", "-")) and not _is_number(cell)]
    uris = [row["uri"] for row in csv.DictReader((tmp_path / "assignments.csv").open(newline=""))]
    assert sorted(uri.removeprefix("'") for uri in uris) == sorted(map(to_uri, NAMES))
    assert {"'=1+1.jpg", "'-rf.jpg"} <= {*uris}


@pytest.mark.parametrize("kind", ["links", "copies"])
def test_exported_images_with_hostile_names_stay_in_the_folder(hostile: Hostile, tmp_path: Path, kind: str) -> None:
    export(hostile.context, tmp_path / "out", kind)  # type: ignore[arg-type]
    files = [path for path in (tmp_path / "out").rglob("*") if path.parent.parent.name == "images"]
    assert len(files) == len(NAMES)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out"]
    assert all(path.name.isprintable() and not path.name.startswith("-") for path in files)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
