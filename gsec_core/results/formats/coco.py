"""Export as COCO JSON: the clusters are categories, and each image has one annotation that covers it completely."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gsec_core.results.files import replacing, write_items
from gsec_core.results.formats.labelled import FACTS, Labelled
from gsec_core.results.formats.placed import place
from gsec_core.results.images import IMAGES, LOST, Images

ANNOTATIONS = "annotations.json"


def write(labelled: Labelled, to: Path, images: Images | None = None) -> dict[str, int]:
    """Write ``annotations.json``, whose categories have the clusters' keys as ids; see `formats.write`."""
    found, path_of = place(labelled, to, images, "coco", absolute=False)
    rows = found.join(labelled.frames.sizes, on="image_id", how="left", maintain_order="left")

    def pictures() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows.select("place", "width", "height").iter_rows(named=True), 1):
            yield {"id": number, "file_name": path_of(row["place"]), "width": row["width"], "height": row["height"]}

    def annotations() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows.select("width", "height", "cluster_key", *FACTS).iter_rows(named=True), 1):
            whole = {"bbox": [0, 0, row["width"], row["height"]], "area": row["width"] * row["height"], "iscrowd": 0}
            beside = {name: row[name] for name in FACTS if name != "confidence"}
            yield {"id": number, "image_id": number, "category_id": row["cluster_key"], **whole, "score": row["confidence"], **beside}

    categories = [
        {"id": key, "name": name, "supercategory": "cluster", "description": description}
        for key, name, description in labelled.classes.select("cluster_key", "class_name", "description").iter_rows()
    ]
    with replacing(to / ANNOTATIONS) as file:
        file.write(b'{"info": ' + json.dumps({"description": labelled.about}).encode())
        for name, items in (("categories", categories), ("images", pictures()), ("annotations", annotations())):
            file.write(b",\n" + json.dumps(name).encode() + b": [")
            write_items(file, items)
            file.write(b"]")
        file.write(b"}\n")
    return {ANNOTATIONS: len(rows), **({IMAGES: len(rows)} if images else {}), LOST: len(labelled.images) - len(rows)}


def load(to: Path, written: Mapping[str, int]) -> str:
    """See `formats.load`."""
    return f"pycocotools.coco.COCO({str(to / ANNOTATIONS)!r})"
