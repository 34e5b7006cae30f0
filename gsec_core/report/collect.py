"""Collects the content of a report from a run's tables."""

from collections import Counter
from collections.abc import Iterator, Mapping, Set

import numpy as np
import polars as pl
import pyarrow.compute as pc

from gsec_core.captioners.template import prompt
from gsec_core.config import DescribeConfig
from gsec_core.curation import Curated, curated, log_of
from gsec_core.errors import BadRecord
from gsec_core.naming import namers
from gsec_core.report.content import GROUPS, LINES, OF_A_GROUP, Cluster, Content, Duplicate, Duplicates, Emerging, Node, Shown, Unusable
from gsec_core.results import quality, status
from gsec_core.results.frames import clusters_of
from gsec_core.stages import align, describe, duplicates, encode, hierarchy, lineage, publish, refit
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import read_parts, thumbnails
from gsec_core.tables import (
    ASSIGNMENTS_TABLE,
    DESCRIBED,
    FAILED,
    FREE,
    LAYOUT_TABLE,
    MISSING,
    OK,
    REJECTED,
    REPRESENTATIVE_CAPTIONS_TABLE,
)

BINS = 20
"""Number of bars in the histogram of confidence."""


def collect(context: Context) -> Content:
    """The whole content of a run's report. Raises Refused if a stage that it needs has not run."""
    request = context.run.request()
    assignments = pl.DataFrame(read_parts(context, align.STAGE, ASSIGNMENTS_TABLE))
    live = pl.DataFrame(encode.encoded_rows(context))
    counts = Counter(live["status"])
    without = live.filter(pl.col("status") != OK).sort("uri")
    labellings = quality.without_labels(context)
    copies = duplicates.load_duplicates(context)
    found, curation = _curation(context)
    hidden = set() if found is None else set(assignments["image_id"].filter(pl.Series(found.hidden)))
    return Content(
        run_id=context.run.id,
        created=request["created"],
        asked=tuple(_asked(context)),
        counts={
            "images": len(live),
            "assigned": len(assignments),
            "rejected": counts[REJECTED],
            "missing": counts[MISSING],
            "clusters": context.config.n_clusters,
            "duplicates": 0 if copies is None else pc.sum(pc.invert(copies["keep"])).as_py() or 0,
        },
        clusters=tuple(_clusters(context, assignments, found)),
        tree=tuple(_tree(context)),
        shown=tuple(_shown(context, assignments, hidden)),
        emerging=tuple(_emerging(context, hidden)),
        confidences=tuple(np.histogram(assignments["confidence"].to_numpy(), BINS, (0, 1))[0].tolist()),
        labellings=tuple(labellings),
        remarks=tuple(quality.remarks(context, labellings)),
        reasons=tuple((row["status"], row["reason"], row["images"]) for row in encode.reasons(context)),
        unusable=tuple(Unusable(*row) for row in without.head(LINES).select("uri", "status", "reason").iter_rows()),
        duplicates=None if copies is None else tuple(_duplicates(context, pl.DataFrame(copies), hidden)),
        timings=tuple(status.timings(context.run)),
        made_with=tuple(_made_with(context)),
        configuration=context.config.model_dump(mode="json"),
        curation=curation,
    )


def _curation(context: Context) -> tuple[Curated | None, tuple[str, ...]]:
    """The curated clusters, or None without curation, and sentences for the reader about the curation."""
    try:
        found = curated(context) if log_of(context).numbers() else None
    except BadRecord as error:
        return None, (f"The names are the model's own: the curation log cannot be read. {error}",)
    if found is None:
        return None, ()
    said = []
    if found.hidden.any() or any(one.curated or one.hidden for one in found.clusters):  # stars and undone acts do not change the report
        said.append(
            f"Names and descriptions include curation up to act {found.last}; where the model's own name differs, it is shown below. "
            "The clusters themselves, their images and their figures are the model's own: merged clusters are still shown one by one, under the name of "
            "the cluster that they were merged into; splits and moves are not shown; hidden images are in no gallery. Later acts are not included."
        )
    if found.open:
        said.append(f"{len(found.open)} of {found.acts} acts cannot be applied to these clusters: gsec curate log shows which, and why.")
    return found, tuple(said)


def _asked(context: Context) -> Iterator[tuple[str, str]]:
    config = context.config
    yield "source", config.source or "unknown"
    yield "corpus", f"{context.corpus.name}, generation {context.generation.number}"
    yield "clusters", str(config.n_clusters)
    yield "continues", _continued(context)
    yield "method", f"{config.method}, text: {config.text_source}"
    yield "encoder", encode.encoders_of(context.run)
    yield "captioner", config.describe.captioner
    yield "question", _question(config.describe)
    yield "descriptions", _told(describe.told(context))
    yield "namer", namers.namer_of(config)


def _continued(context: Context) -> str:
    previous, moved = context.run.request().get("previous"), lineage.moved(context)
    if previous is None:
        return "nothing: it is the first of its pipeline"
    return f"run {previous['run_id']}; {'no image is in both' if moved is None else f'{moved:.1%} of the images in both are under another key now'}"


def _told(counts: Mapping[str, float]) -> str:
    said = ", ".join(f"{counts[status]:,} {status}" for status in (DESCRIBED, FREE, FAILED, MISSING) if counts[status])
    if "requests" not in counts:
        return said
    seconds = counts["reply_seconds"] / counts["requests"]
    return f"{said}; {counts['requests']:,} requests of {counts['prompt_tokens']:,} and {counts['completion_tokens']:,} tokens, {seconds:.1f} s each"


def _question(config: DescribeConfig) -> str:
    if config.captioner.startswith("table:"):
        return "none: the descriptions come from a table"
    if config.captioner.startswith("openai:"):
        return f"{prompt(config.criterion).partition('. ')[0]}."
    return "Which of ImageNet's thousand classes is it, and what are its colour, light and texture?"


def _clusters(context: Context, assignments: pl.DataFrame, found: Curated | None) -> Iterator[Cluster]:
    confidence = dict(assignments.group_by("cluster").agg(pl.col("confidence").mean()).iter_rows())
    for row in clusters_of(context.run).iter_rows(named=True):
        now = None if found is None else found.of_model(row["cluster_key"])
        yield Cluster(
            **{name: row[name] for name in ("cluster", "size", "cohesion", "separation", "agreement", "stability")},
            key=row["cluster_key"],
            name=row["name"] if now is None else now.name,
            description=(row["description"] if now is None else now.description) or "",
            terms=tuple(row["terms"]),
            confidence=confidence.get(row["cluster"]),
            model_name=None if now is None or now.name == row["name"] else row["name"],
        )


def _shown(context: Context, assignments: pl.DataFrame, hidden: Set[bytes]) -> Iterator[Shown]:
    layout = pl.DataFrame(context.read(publish.STAGE, LAYOUT_TABLE)).select("image_id", "role", "x", "y")
    layout = layout.filter(~pl.col("image_id").is_in(list(hidden)))
    captions = context.read(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE, ["content_hash", "text"]).to_pylist()
    caption_of = {row["content_hash"]: row["text"] for row in captions}
    thumbnail_of = dict(thumbnails(context, layout["image_id"]))
    for row in layout.join(assignments, on="image_id", maintain_order="left").iter_rows(named=True):
        yield Shown(
            **{name: row[name] for name in ("uri", "cluster", "role", "confidence", "x", "y")},
            caption=caption_of.get(row["content_hash"]),
            thumbnail=thumbnail_of.get(row["image_id"]),
        )


def _tree(context: Context) -> Iterator[Node]:
    table = hierarchy.load_hierarchy(context)
    if table is not None:
        for row in table.to_pylist():
            yield Node(row["left"], row["right"], row["name"], row["clusters"], row["size"])


PICTURES = 3
"""Number of pictures shown for a group of new images."""


def _emerging(context: Context, hidden: Set[bytes]) -> Iterator[Emerging]:
    for group in refit.emerged(context)[:LINES]:
        typical = [image for image in group["images"] if image not in hidden][:PICTURES]
        thumbnail_of = dict(thumbnails(context, typical))
        yield Emerging(group["size"], group["cluster"], tuple(group["like"]), tuple(map(thumbnail_of.get, typical)))


def _duplicates(context: Context, copies: pl.DataFrame, hidden: Set[bytes]) -> Iterator[Duplicates]:
    """The first groups, without hidden images. A group of which only one image is left, or not the one to keep, is left out."""
    left = copies.filter(pl.col("group") < GROUPS, ~pl.col("image_id").is_in(list(hidden)))
    shown = left.filter((pl.len() > 1).over("group"), pl.col("keep").any().over("group"))
    counts = dict(shown.group_by("group").len().iter_rows())
    first = shown.group_by("group", maintain_order=True).head(OF_A_GROUP)
    thumbnail_of = dict(thumbnails(context, first["image_id"]))
    for (group,), rows in first.partition_by("group", as_dict=True, maintain_order=True).items():
        images = rows.select("uri", "cosine", "exact", "image_id").iter_rows()
        yield Duplicates(counts[group], tuple(Duplicate(uri, cosine, exact, thumbnail_of.get(id)) for uri, cosine, exact, id in images))


def _made_with(context: Context) -> Iterator[tuple[str, str]]:
    """Versions and machine that the newest attempt recorded; empty for a run in a user's own process, which records none."""
    for attempt in context.run.attempts()[-1:]:
        start = attempt["start"]
        yield "Python", start["python"]
        yield "machine", start["machine"]
        yield from start["versions"].items()
