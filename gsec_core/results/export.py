"""A run's result for other programs: assignments with names as Parquet and CSV, the clusters as JSON, images by cluster.

Reads the run's tables and, for copies of images, its source. Imports no torch. `formats` has what other libraries load.
"""

import json
from pathlib import Path
from typing import IO, Any

import polars as pl
import polars.selectors as cs

from gsec_core.errors import Refused
from gsec_core.results.files import appearing, make_folder, replacing
from gsec_core.results.frames import Frames
from gsec_core.results.images import IMAGES, LOST, Images, open_for, place_images
from gsec_core.stages.base import Context
from gsec_core.stages.encode import encoders_of

ENCODER = "encoder"
"""The folder of the encoder that the run has trained."""

_FORMULA = r"^[\s\p{C}]*[=+\-@＝＋－＠]|^[\t\r\n]"
"""How a cell begins that a spreadsheet would run (OWASP, CSV injection)."""


def export(context: Context, to: Path, images: Images | None = None, encoder: bool = False, groups: int | None = None) -> dict[str, int]:
    """Write a run's result into the folder ``to``. Returns the files and folders written, with the rows or images of each.

    Files that are there are replaced, each at once. Where people have curated the clusters, keys and names are theirs, the model's own beside
    them, and hidden images are marked, and in no folder. ``images`` adds one folder for each cluster with links to the images, of a source
    that is a local folder, or with copies of them; `LOST` counts those that are gone or, of copies, others by now. ``encoder`` adds the
    folder of the encoder that the run has trained, as `enhance.write_encoder` does, which imports torch; counted are its files. ``groups`` adds
    a table with the model's clusters in so many groups, by its tree. Raises Refused if the run is not finished, has no tree or not so many
    clusters, if there is a folder of images already, or if links are wanted of what are no files; OSError if the disk is full.
    """
    frames = Frames(context)
    assignments, clusters = frames.assignments, frames.clusters
    source = open_for(context, images, to)
    if encoder and (to / ENCODER).exists():
        raise Refused(f"--encoder: {to / ENCODER} exists already, and a run may need it. Move it away, or name another folder.")
    grouped = None if groups is None else frames.groups(groups)
    make_folder(to)
    with replacing(to / "assignments.parquet") as file:
        assignments.write_parquet(file)
    with replacing(to / "clusters.json") as file:
        file.write(_json(frames))
    tables = {
        "assignments.csv": assignments.with_columns(pl.col("image_id", "content_hash").bin.encode("hex")),
        "clusters.csv": clusters.with_columns(cs.list().cast(pl.List(pl.String)).list.join("; ")),
        "unusable.csv": frames.unusable,
    }
    if frames.duplicates is not None:
        tables["duplicates.csv"] = frames.duplicates.with_columns(pl.col("image_id").bin.encode("hex"))
    if frames.pseudo_labels is not None:
        tables["pseudo_labels.csv"] = frames.pseudo_labels
    if grouped is not None:
        tables["groups.csv"] = grouped
    for name, table in tables.items():
        with replacing(to / name) as file:
            write_csv(table, file)
    written = {"assignments.parquet": len(assignments), "clusters.json": len(clusters), **{name: len(table) for name, table in tables.items()}}
    if encoder:
        written |= {ENCODER: _write_encoder(context, to / ENCODER)}
    if source is None:
        return written
    shown = frames.shown if frames.curation is None else frames.shown.with_columns(cluster="cluster_key")
    placed = place_images(context, source, shown, to / IMAGES, images == "links")
    return {**written, IMAGES: len(placed), LOST: len(shown) - len(placed)}


def write_csv(table: pl.DataFrame, file: IO[bytes]) -> None:
    """Texts in quotes, and with an apostrophe before those that a spreadsheet would take for a formula."""
    table.with_columns(pl.col(pl.String).str.replace(f"({_FORMULA})", "'$1")).write_csv(file, quote_style="non_numeric")


def _json(frames: Frames) -> bytes:
    context, found = frames.context, frames.curation
    config = context.config
    about = {"run_id": context.run.id, "source": config.source, "encoder": encoders_of(context.run), "captioner": config.describe.captioner}
    more: dict[str, Any] = {}
    if found is not None:
        more = {"model_clusters": frames.model_clusters.to_dicts(), "acts": found.acts, "open_acts": len(found.open)}
    return json.dumps({**about, "clusters": frames.clusters.to_dicts(), **more}, indent=1, ensure_ascii=False).encode()


def _write_encoder(context: Context, to: Path) -> int:
    """The folder appears when it is whole. Returns its files."""
    from gsec_core.stages import enhance

    with appearing(to) as folder:
        enhance.write_encoder(context, folder)
    return len(list(to.iterdir()))
