"""Serves stores, and reads their pages and metrics."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from flows.serve.app import application
from gsec_core import pipeline
from gsec_core.stages.base import Context, run_stage
from gsec_core.store import Store

SECRET = "a long random text"

HOSTILE = "</span><script>alert(1)</script>\u202e\x00 s3://key:secret@host/x?token=1"


@dataclass
class Shown:
    """A store with a run of every kind."""

    store: Store
    finished: Context
    unfinished: Context
    failed: Context
    assigned: Context
    counting: Context

    @property
    def folder(self) -> Path:
        return Path(self.store.url)

    @property
    def report(self) -> str:
        return f"/runs/{self.finished.run.id}/report/index.html"


def worked_on(context: Context, *stages: str) -> Context:
    """Do the stages, with a record of an attempt for each, as the flows do."""
    for name in stages:
        with context.run.attempt({"stage": name, **pipeline.provenance(context.config)}) as facts:
            facts["sums"] = run_stage(context, pipeline.stage(name))
    return context


@contextmanager
def served(*stores: Store, token: str | None = None) -> Iterator[TestClient]:
    """A client of the server, asking from this machine. It does not send the ``token`` by itself."""
    with TestClient(application(stores, token), base_url="http://127.0.0.1:4280", follow_redirects=False) as client:
        yield client


def rows(page: str) -> dict[str, str]:
    """First digits of a run's id -> its row on the front page."""
    return {found[1]: row for row in page.partition('id="runs"')[2].split("<tr>") if (found := re.search(r"<code>(\w{12})</code>", row))}


def figures(client: TestClient) -> dict[tuple[str, ...], float]:
    """Every sample of the metrics: its name and the values of its labels, without the store -> its value."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            key = (sample.name, *(value for label, value in sample.labels.items() if label != "store"))
            assert key not in found
            found[key] = sample.value
    return found


def routes(shown: Shown) -> list[str]:
    return ["/", "/metrics", "/published/nightly", f"/runs/{shown.finished.run.id}", shown.report, "/nothing", "/runs/x", "/health/", "//health"]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
