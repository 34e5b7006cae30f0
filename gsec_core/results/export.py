"""Export a run's result for other programs: assignments with names as Parquet and CSV, the clusters as JSON, images by cluster.

Reads the run's tables and, for copies of images, its source. Imports no torch. `formats` writes the formats of other libraries.
"""

import json
from pathlib import Path
from typing import IO, Any

import polars as pl
import polars.selectors as cs

from gsec_core.errors import Refused
from gsec_core.results.files import appearing, make_folder, replacing
from gsec_core.results.frames import Frames
from gsec_core.results.images import IMAGES, LOST, Images, check_outside, open_for, place_images
from gsec_core.sources.keyed import FORMULA
from gsec_core.stages.base import Context
from gsec_core.stages.encode import encoders_of

ENCODER = "encoder"
"""Folder of the encoder that the run has trained."""


def export(context: Context, to: Path, images: Images | None = None, encoder: bool = False, groups: int | None = None) -> dict[str, int]:
    """Write a run's result into the folder ``to``. Returns the written files and folders with the number of rows, images or files of each.

    Existing files are replaced atomically. If people have curated the clusters, keys and names are theirs, and the model's keys and names have
    columns of their own; hidden images are marked in the tables and left out of the folders.

    ``images`` adds one folder for each cluster with links to the images (only if the source is a local folder) or with copies. `LOST` counts
    images that are gone or, for copies, have changed. ``encoder`` adds the folder of the encoder that the run has trained; this imports torch
    (see `enhance.write_encoder`). ``groups`` adds a table with the model's clusters in that many groups, by its tree of clusters.

    Raises Refused if the run is not finished, has no tree or fewer clusters than ``groups``, if the folder of images or of the encoder exists
    already, or if links are requested and the images are not local files; OSError if the disk is full.
    """
    frames = Frames(context)
    assignments, clusters = frames.assignments, frames.clusters
    check_outside(context, to, "assignments.parquet")
    source = open_for(context, images, to)
    if encoder and (to / ENCODER).exists():
        raise Refused(f"--encoder: {to / ENCODER} exists already, and a run may need it. Move it away, or name another folder.")
    if encoder:
        _check_encoder(context)
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
    """Write a table as CSV. Texts are quoted, and those that a spreadsheet would take for a formula get a leading apostrophe."""
    table.with_columns(pl.col(pl.String).str.replace(f"^({FORMULA})", "'$1")).write_csv(file, quote_style="non_numeric")


def _json(frames: Frames) -> bytes:
    context, found = frames.context, frames.curation
    config = context.config
    about = {"run_id": context.run.id, "source": config.source, "encoder": encoders_of(context.run), "captioner": config.describe.captioner}
    more: dict[str, Any] = {}
    if found is not None:
        more = {"model_clusters": frames.model_clusters.to_dicts(), "acts": found.acts, "open_acts": len(found.open)}
    return json.dumps({**about, "clusters": frames.clusters.to_dicts(), **more}, indent=1, ensure_ascii=False).encode()


def _check_encoder(context: Context) -> None:
    """Raises Refused if the run has no trained encoder to write, before anything is written."""
    from gsec_core.stages import enhance

    enhance.check_trained(context)


def _write_encoder(context: Context, to: Path) -> int:
    """Write the trained encoder; the folder appears when it is complete. Returns the number of files."""
    from gsec_core.stages import enhance

    with appearing(to) as folder:
        enhance.write_encoder(context, folder)
    return len(list(to.iterdir()))
