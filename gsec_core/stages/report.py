"""report: makes the run's pages from its tables.

Reads all tables that a report shows; writes `report` (one row for each page) and the pages beside it; ``index.html`` is the page to open. Runs
do not share a report: another run with equal tables may have another source, or other rejected images.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import xxhash

from gsec_core.report.collect import collect
from gsec_core.report.pages import pages
from gsec_core.stages import baseline, duplicates, hierarchy, lineage, publish
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.tables import REPORT, REPORT_TABLE


def draw(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Make all pages. The table is committed after them, so that every page that it names exists."""
    directory = context.shards(STAGE, REPORT_TABLE).directory
    rows = []
    for page, data in pages(collect(context)):
        path = f"{directory}/{page}"
        if not context.run.files.create(path, data):
            data = context.run.files.read(path)  # an earlier attempt, which was killed, made it
        rows.append({"page": page, "size_bytes": len(data), "digest": xxhash.xxh3_128_digest(data)})
    yield Finished("all", (pa.Table.from_pylist(rows, schema=REPORT),), {"pages": len(rows)})


def index(context: Context) -> str:
    """Location of the report's first page."""
    shards = context.shards(STAGE, REPORT_TABLE)
    return shards.files.location(f"{shards.directory}/index.html")


_SHOWN = (publish.STAGE, lineage.STAGE, hierarchy.STAGE, baseline.STAGE, duplicates.STAGE)

STAGE = Stage(
    name="report",
    version=2,
    settings=lambda config: {},
    inputs=lambda context: [*(stage.fingerprint(context) for stage in _SHOWN if context.has(stage)), context.run.id],
    steps=(Step((REPORT_TABLE,), draw, whole=True),),
)
