"""Helpers that read a collection as a user of the library does."""

from pathlib import Path

import numpy as np

from gsec_core.explore import Collection, ImageRow
from gsec_core.stages import encode
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_embeddings, usable
from gsec_core.tables import MAP_TABLE


def everything(found: Collection, **asked: object) -> list[ImageRow]:
    rows: list[ImageRow] = []
    while True:
        page = found.images(offset=len(rows), limit=7, **asked)  # type: ignore[arg-type]
        rows += page.rows
        if len(rows) >= page.total:
            assert len(rows) == page.total
            return rows


def embeddings(context: Context) -> dict[str, np.ndarray]:
    return dict(zip(usable(context).rows["uri"].to_pylist(), load_embeddings(context).astype(np.float32), strict=True))


def by_uri(found: Collection, uri: str) -> str:
    return next(row.id for row in everything(found) if row.uri == uri)


def placed(found: Collection) -> list[str]:
    """Ids of the images that are on the map, in canonical order."""
    shards, names = found.run.table(MAP_TABLE)
    ids = {id.hex() for table in shards.read_all(names, ["image_id"]) for id in table["image_id"].to_pylist()}
    return [id.hex() for id in usable(found.context).rows["image_id"].to_pylist() if id.hex() in ids]


def shard_of(found: Collection, table: str, id: str) -> Path:
    """The file of the shard of an encoder's table that holds the image."""
    fingerprint = found.run.stages()[encode.STAGE.name]["fingerprint"]
    shards = found.context.corpus.table(table, fingerprint)
    [name] = {row["shard"] for row in found.context.live.to_pylist() if row["image_id"].hex() == id}
    return Path(found.run.files.url) / shards.path(name)
