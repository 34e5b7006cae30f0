"""A run's result for other programs: assignments with names as Parquet and CSV, the clusters as JSON, images by cluster.

Reads the run's tables and, for copies of images, its source. Imports no torch.
"""

import functools
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl
import polars.selectors as cs
from PIL import Image

from gsec_core.clustering import hierarchy
from gsec_core.curation import Curated, curated, log_of
from gsec_core.devices import usable_cores
from gsec_core.errors import Refused
from gsec_core.images.decode import FORMATS, content_hash
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.sources.folder import LocalFolder
from gsec_core.sources.listing import is_image_name
from gsec_core.sources.uris import inside
from gsec_core.stages.base import Context
from gsec_core.stages.encode import encoded_rows, encoders_of, fetch
from gsec_core.store import Run
from gsec_core.tables import (
    ALIGNMENT_TABLE,
    ASSIGNED_TABLE,
    ASSIGNMENTS_TABLE,
    CLUSTER_NAMES_TABLE,
    CLUSTERS_TABLE,
    DUPLICATES_TABLE,
    HIERARCHY_TABLE,
    INSTANCE_GROUPS_TABLE,
    LINEAGE_TABLE,
    OK,
)

Images = Literal["links", "copies"]

IMAGES = "images"
"""The folder of links or copies."""

ENCODER = "encoder"
"""The folder of the encoder that the run has trained."""

LOST = "lost"
"""Counts images that the source no longer has as they were clustered."""

_FORMULA = r"^[\s\p{C}]*[=+\-@＝＋－＠]|^[\t\r\n]"
"""How a cell begins that a spreadsheet would run (OWASP, CSV injection)."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+')
"""What some system does not take in a file name, or shows as something else."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Devices of Windows, whatever the ending."""

_LONGEST, _LONGEST_ENDING = 120, 6
"""Bytes of a file name, so that it fits wherever it is copied, and characters of its ending."""


def export(context: Context, to: Path, images: Images | None = None, encoder: bool = False, groups: int | None = None) -> dict[str, int]:
    """Write a run's result into the folder ``to``. Returns the files and folders written, with the rows or images of each.

    Files that are there are replaced, each at once. Where people have curated the clusters, keys and names are theirs, the model's own beside
    them, and hidden images are marked, and in no folder. ``images`` adds one folder for each cluster with links to the images, of a source
    that is a local folder, or with copies of them; `LOST` counts those that are gone or, of copies, others by now. ``encoder`` adds the
    folder of the encoder that the run has trained, as `enhance.write_encoder` does, which imports torch; counted are its files. ``groups`` adds
    a table with the model's clusters in so many groups, by its tree. Raises Refused if the run is not finished, has no tree or not so many
    clusters, if there is a folder of images already, or if links are wanted of what are no files; OSError if the disk is full.
    """
    labelled = _assignments(context)
    model = clusters = _clusters(context)
    assignments, found = labelled, curated(context) if log_of(context).numbers() else None
    if found is not None:
        assignments, clusters = _curated_assignments(labelled, found), _curated_clusters(model, found)
    if images and (to / IMAGES).exists():
        raise Refused(f"--images {images}: {to / IMAGES} exists already, and may belong to another run. Move it away, or name another folder.")
    if encoder and (to / ENCODER).exists():
        raise Refused(f"--encoder: {to / ENCODER} exists already, and a run may need it. Move it away, or name another folder.")
    grouped = None if groups is None else _groups(_model(context), model, groups)
    source = context.open_source() if images else None
    if images == "links" and not isinstance(source, LocalFolder):
        raise Refused(f"--images links: the images of {context.config.source} are not files on this machine. Use --images copies.")
    make_folder(to)
    with _replacing(to / "assignments.parquet") as file:
        assignments.write_parquet(file)
    with _replacing(to / "clusters.json") as file:
        file.write(_json(context, clusters, {} if found is None else {"model_clusters": model.to_dicts(), "acts": found.acts, "open_acts": len(found.open)}))
    tables = {
        "assignments.csv": assignments.with_columns(pl.col("image_id", "content_hash").bin.encode("hex")),
        "clusters.csv": clusters.with_columns(cs.list().cast(pl.List(pl.String)).list.join("; ")),
        "unusable.csv": pl.DataFrame(encoded_rows(context)).filter(pl.col("status") != OK).select("uri", "status", "reason").sort("uri"),
    }
    made = {table for record in context.run.stages().values() for table in record["tables"]}
    if DUPLICATES_TABLE in made:  # not of a run that assigns, or of an older gsec
        tables["duplicates.csv"] = _read(context.run, DUPLICATES_TABLE).with_columns(pl.col("image_id").bin.encode("hex"))
    if INSTANCE_GROUPS_TABLE in made:
        tables["pseudo_labels.csv"] = _pseudo_labels(context.run, labelled, model)
    if grouped is not None:
        tables["groups.csv"] = grouped
    for name, table in tables.items():
        with _replacing(to / name) as file:
            write_csv(table, file)
    written = {"assignments.parquet": len(assignments), "clusters.json": len(clusters), **{name: len(table) for name, table in tables.items()}}
    if encoder:
        written |= {ENCODER: _write_encoder(context, to / ENCODER)}
    if source is None:
        return written
    shown = assignments if found is None else assignments.filter(~pl.col("hidden")).with_columns(cluster="cluster_key")
    return written | _write_images(context, source, shown, to / IMAGES, images == "links")


def make_folder(to: Path) -> None:
    """Make the folder that a user named, if it is not there. Raises Refused if it cannot be made."""
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--to {to}: no folder can be made there ({error.strerror}). Name another.") from None


def write_csv(table: pl.DataFrame, file: IO[bytes]) -> None:
    """Texts in quotes, and with an apostrophe before those that a spreadsheet would take for a formula."""
    table.with_columns(pl.col(pl.String).str.replace(f"({_FORMULA})", "'$1")).write_csv(file, quote_style="non_numeric")


def _assignments(context: Context) -> pl.DataFrame:
    """The schema of `assignments`, with the clusters' keys and names beside their numbers."""
    rows = _read(context.run, ASSIGNED_TABLE if context.of_run else ASSIGNMENTS_TABLE)
    named = rows.join(_clusters(context).select("cluster", "cluster_key", "name"), on="cluster", how="left", maintain_order="left")
    first = ["uri", "cluster", "cluster_key", "name"]
    return named.select(*first, pl.exclude(*first))


def _clusters(context: Context) -> pl.DataFrame:
    keys, *more = (_read(_model(context), table) for table in (LINEAGE_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE))
    return functools.reduce(lambda left, right: left.join(right, on="cluster", maintain_order="left"), more, keys.select("cluster", "cluster_key"))


def _curated_assignments(assignments: pl.DataFrame, found: Curated) -> pl.DataFrame:
    """With key and name as people curated them, the model's own beside."""
    names = {cluster.key: cluster.name for cluster in found.clusters}
    own = assignments.rename({"cluster_key": "model_cluster_key", "name": "model_name"})
    keyed = own.with_columns(cluster_key=pl.Series(found.keys, dtype=pl.Int32), hidden=pl.Series(found.hidden))
    first = ["uri", "cluster", "cluster_key", "name", "hidden", "model_cluster_key", "model_name"]
    return keyed.with_columns(name=pl.col("cluster_key").replace_strict(names, return_dtype=pl.String)).select(*first, pl.exclude(*first))


def _curated_clusters(clusters: pl.DataFrame, found: Curated) -> pl.DataFrame:
    """One row for each curated cluster; beside it, of the model's cluster of this key, name, size and what else is known of that. Parts that a split
    made have none."""
    kinds = {"cluster_key": pl.Int32, "name": pl.String, "description": pl.String, "size": pl.Int64, "hidden": pl.Boolean, "starred": pl.Boolean}
    rows = pl.DataFrame(
        [(*cluster[:7], list(cluster.merged), cluster.key if cluster.model_name is not None else None) for cluster in found.clusters],
        schema={**kinds, "curated": pl.Boolean, "merged": pl.List(pl.Int32), "model_cluster_key": pl.Int32},
        orient="row",
    )
    own = clusters.rename({name: f"model_{name}" for name in ("name", "description", "size")})
    return rows.join(own, on="cluster_key", how="left", maintain_order="left")


def _pseudo_labels(run: Run, assignments: pl.DataFrame, clusters: pl.DataFrame) -> pl.DataFrame:
    """What a semi-supervised learner starts from: the images that members labelled themselves, each with the label, in the numbers of the consensus."""
    labels = _read(run, ALIGNMENT_TABLE).select("member", cluster="permutation").explode("cluster")
    labels = labels.with_columns(group=pl.int_range(pl.len(), dtype=pl.Int32).over("member"))
    found = _read(run, INSTANCE_GROUPS_TABLE).join(assignments.select("image_id", "uri"), on="image_id").join(labels, on=["member", "group"])
    named = found.join(clusters.select("cluster", "cluster_key", "name"), on="cluster")
    return named.select("uri", "member", "class", "cluster", "cluster_key", "name").sort("member", "class", "uri")


def _groups(run: Run, clusters: pl.DataFrame, groups: int) -> pl.DataFrame:
    """One row for each cluster of the model, with the group that it is in, the largest first."""
    count = len(clusters)
    if not 1 <= groups <= count:
        raise Refused(f"--groups {groups}: the run has {count} clusters. Give 1 to {count}.")
    try:
        tree = _read(run, HIERARCHY_TABLE)
    except Refused:
        raise Refused(
            f"--groups {groups}: run {run.id} has no tree of its clusters, because an older gsec made it. gsec run with --redo hierarchy makes one."
        ) from None
    if len(tree) != count - 1:
        raise Refused(f"--groups {groups}: of {count} clusters there is no tree.")
    merges = list(tree.select("left", "right").iter_rows())
    names = [*clusters["name"], *tree["name"]]
    found = sorted(hierarchy.cut(merges, count, groups).items(), key=lambda group: (-sum(clusters["size"][group[1]]), group[1]))
    rows = [(cluster, number, names[node]) for number, (node, inside) in enumerate(found) for cluster in inside]
    grouped = pl.DataFrame(rows, schema={"cluster": pl.Int32, "group": pl.Int32, "group_name": pl.String}, orient="row")
    return clusters.select("cluster", "cluster_key", "name", "size").join(grouped, on="cluster").sort("group", "cluster")


def _model(context: Context) -> Run:
    """The run that made the clusters."""
    return (context.of_run or context).run


def _read(run: Run, table: str) -> pl.DataFrame:
    shards, names = run.table(table)
    return pl.concat([pl.DataFrame(found) for found in shards.read_all(names)])


def _json(context: Context, clusters: pl.DataFrame, more: dict[str, Any]) -> bytes:
    config = context.config
    about = {"run_id": context.run.id, "source": config.source, "encoder": encoders_of(context.run), "captioner": config.describe.captioner}
    return json.dumps({**about, "clusters": clusters.to_dicts(), **more}, indent=1, ensure_ascii=False).encode()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
    os.replace(partial, path)


def _write_images(context: Context, source: Source, assignments: pl.DataFrame, to: Path, links: bool) -> dict[str, int]:
    """``to/CLUSTER NAME/IMAGE``; the folder appears when it is whole."""
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    digits = len(str(context.config.n_clusters - 1))
    listed = assignments.join(pl.DataFrame(context.live.select(["image_id", "size_bytes", "version"])), on="image_id", maintain_order="left")
    place = functools.partial(_link if links else _copy, source)
    found = 0
    with ThreadPoolExecutor(context.config.encode.workers or usable_cores(), thread_name_prefix="export") as pool:
        for (cluster, name), rows in listed.partition_by("cluster", "name", as_dict=True, maintain_order=True).items():
            folder = partial / safe_name(f"{cluster:0{digits}d} {name}")
            folder.mkdir(parents=True)
            refs = list(map(ImageRef._make, rows.select(ImageRef._fields).iter_rows()))
            paths = [folder / name for name in file_names([ref.uri for ref in refs])]
            found += sum(pool.map(place, refs, rows["content_hash"], paths))
    partial.mkdir(exist_ok=True)  # a run may have assigned nothing
    partial.rename(to)
    return {to.name: found, LOST: len(assignments) - found}


def _write_encoder(context: Context, to: Path) -> int:
    """The folder appears when it is whole. Returns its files."""
    from gsec_core.stages import enhance

    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    enhance.write_encoder(context, partial)
    partial.rename(to)
    return len(list(to.iterdir()))


def _link(source: Source, ref: ImageRef, digest: bytes, path: Path) -> bool:
    """False if the file is not there any more."""
    target = os.path.join(source.url, inside(ref.uri))
    if not os.path.exists(target):
        return False
    path.symlink_to(target)
    return True


def _copy(source: Source, ref: ImageRef, digest: bytes, path: Path) -> bool:
    """False if what was clustered is not there any more."""
    try:
        data = fetch(source, ref)
    except (MissingImage, RejectedImage):
        return False
    if content_hash(data) != digest:
        return False
    if not is_image_name(path.name):  # a row of a Parquet file
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            path = path.with_name(f"{path.name}.{(image.format or 'image').lower()}")
    path.write_bytes(data)
    return True


def file_names(uris: Sequence[str]) -> list[str]:
    """The last parts of URIs as names of files in one folder, unlike each other on every system."""
    taken: dict[str, int] = {}
    names = []
    for uri in uris:
        first = name = safe_name(uri.rpartition("/")[2])
        stem, ending = os.path.splitext(first)
        while _folded(name) in taken:
            taken[_folded(first)] += 1
            name = f"{stem} {taken[_folded(first)]}{ending}"
        taken[_folded(name)] = 1
        names.append(name)
    return names


def safe_name(text: str) -> str:
    """A file name on every system: short, visible, and no path."""
    stem, ending = os.path.splitext(_UNSAFE.sub("_", text).strip(". "))
    if len(ending) > _LONGEST_ENDING:
        stem, ending = stem + ending, ""
    stem = stem.encode()[: _LONGEST - len(ending.encode())].decode(errors="ignore").rstrip(". ") or "_"
    return f"{'_' if stem.startswith('-') or _RESERVED.fullmatch(stem) else ''}{stem}{ending}"


def _folded(name: str) -> str:
    """Equal for names that some system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()
