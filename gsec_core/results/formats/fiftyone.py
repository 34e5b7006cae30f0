"""Export as FiftyOneImageClassificationDataset: a label with its confidence for each image, and a manifest of the images' files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gsec_core.results.files import replacing, write_entries
from gsec_core.results.formats.labelled import FACTS, Labelled
from gsec_core.results.formats.placed import place
from gsec_core.results.images import IMAGES, LOST, Images

LABELS, MANIFEST = "labels.json", "data.json"


def write(labelled: Labelled, to: Path, images: Images | None = None) -> dict[str, int]:
    """Write ``labels.json`` and ``data.json``, whose keys are image ids in hex digits; see `formats.write`."""
    found, path_of = place(labelled, to, images, "fiftyone", absolute=True)
    rows = found.select("image_id", "place", "uri", "label", "cluster_key", *FACTS)

    def each() -> Iterator[tuple[str, dict[str, Any]]]:
        return ((row["image_id"].hex(), row) for row in rows.iter_rows(named=True))

    with replacing(to / MANIFEST) as file:
        file.write(b"{")
        write_entries(file, ((id, path_of(row["place"])) for id, row in each()))
        file.write(b"}\n")
    with replacing(to / LABELS) as file:
        file.write(b'{"classes": ' + json.dumps(labelled.classes["class_name"].to_list()).encode() + b',\n"labels": {')
        write_entries(file, ((id, _label(row)) for id, row in each()))
        file.write(b"}}\n")
    written = {LABELS: len(rows), MANIFEST: len(rows), **({IMAGES: len(rows)} if images else {})}
    return {**written, LOST: len(labelled.images) - len(rows)}


def load(to: Path, written: Mapping[str, int]) -> str:
    """See `formats.load`."""
    kind = "fiftyone.types.FiftyOneImageClassificationDataset"
    return f'fiftyone.Dataset.from_dir({str(to)!r}, {kind}, data_path="{MANIFEST}", label_field="cluster")'


def _label(row: dict[str, Any]) -> dict[str, Any]:
    attributes = {name: row[name] for name in ("uri", "cluster_key", *FACTS) if name != "confidence"}
    return {"label": row["label"], "confidence": row["confidence"], "attributes": attributes}
