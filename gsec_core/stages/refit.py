"""refit: whether the published model still fits the images, and which of the new ones are something new.

Reads `embeddings` and, of the published run, `assignments` and its model; writes `refit` (one row: what is decided, why, and by which numbers)
and `emerging` (one row for each group of new images that lie together where no old ones are). The decision says which stages the run has: one that
keeps the model
does not train.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.clustering import drift
from gsec_core.clustering.drift import Measure, Said
from gsec_core.clustering.ensemble import head_posteriors
from gsec_core.clustering.kmeans import sample_rows, unit_rows
from gsec_core.config import PipelineConfig, recorded
from gsec_core.devices import set_threads
from gsec_core.errors import BadRecord, BadShard, GsecError
from gsec_core.section import output_settings
from gsec_core.stages import align, baseline, before, describe, encode, enhance, prepare, prototypes, text, train
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import load_embeddings, usable
from gsec_core.store import Run
from gsec_core.tables import ASSIGNMENTS_TABLE, CLUSTERS_TABLE, CONTINUED, EMERGING, EMERGING_TABLE, FRESH, KEPT, REFIT, REFIT_TABLE, RENEWED

NAME = "refit"

AUTO, NEVER, ALWAYS = "auto", "never", "always"
"""Policies of `train.refit`."""

LOOKED_AT = 4096
"""Images that the model was made of, and others, by which it is judged, at most."""

LIKE = 3
"""Described images that say what a group is like."""

_TEXT = tuple(stage for stage in text.ALL_STAGES if stage is not encode.SECOND)

_LEFT_OUT = {stage.name for stage in (baseline.STAGE, prototypes.STAGE, describe.STAGE, *_TEXT, prepare.STAGE, train.STAGE, enhance.STAGE)}
"""Stages that a run does not have which keeps the model."""

_ASKS_FOR_ANOTHER = {*_LEFT_OUT, encode.STAGE.name, encode.SECOND.name, align.STAGE.name, describe.RETRY}
"""What cannot be redone and the model kept."""


@dataclass(frozen=True)
class Decided:
    """What becomes of the published model."""

    decision: str
    why: str
    model: Run | None = None
    """The one that it is of, if it can be read."""
    measures: Sequence[Measure] = ()
    new: NDArray[np.bool_] | None = None
    """(n,): the images that the model was not made of; None without a model."""
    gone: int | None = None
    fitted_images: int = 0
    groups: Sequence[NDArray[np.int64]] = ()
    """Rows of new images that lie together."""
    warning: str | None = None


def decide(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """What becomes of the model, and the groups of new images."""
    set_threads(context.config.threads)
    n, found = int(usable(context).rows.num_rows), _decided(context)
    grown = context.config.train.grow and found.decision == RENEWED
    row = {
        "decision": found.decision,
        "why": found.why,
        "warning": found.warning,
        "model": None if found.decision == FRESH or found.model is None else found.model.id,
        "clusters": None if found.decision == FRESH else _clusters(context, found) + (len(found.groups) if grown else 0),
        "images": n,
        "new": None if found.new is None else int(found.new.sum()),
        "gone": found.gone,
        "fitted_images": found.fitted_images or n,
        **{measure.name: measure.now for measure in found.measures},
        **{f"{measure.name}_before": measure.before for measure in found.measures},
        "scratch_moved": _scratch_moved(context.previous),
        "left_out": sorted(_LEFT_OUT) if found.decision == KEPT else [],
    }
    groups = list(_groups(context, found, grown)) if found.groups else []
    progress(n)
    yield Finished("all", (pa.Table.from_pylist([row], REFIT), pa.Table.from_pylist(groups, EMERGING)), {"emerging": len(groups)})


def _scratch_moved(run: Run | None) -> float | None:
    """What the last fit from scratch of the pipeline moved, by what is recorded of it."""
    if run is None or (decision := run.decision()) is None:
        return None
    if decision["decision"] == FRESH:
        return (run.result() or {}).get("moved")
    return cast("float | None", decision["scratch_moved"])


def _clusters(context: Context, found: Decided) -> int:
    """How many clusters the model has, which may have grown; as many as are asked for without one."""
    return context.config.n_clusters if found.model is None else found.model.config().n_clusters


def _decided(context: Context) -> Decided:
    """Raises BadShard for what is damaged of the run's own tables; a model that is damaged is a reason to fit from scratch."""
    run, policy = context.previous, context.config.train.refit
    if run is None:
        return Decided(FRESH, "nothing is published yet")
    X = load_embeddings(context)  # what is damaged here is none of the model's
    try:
        source = run.model()
        if why := _why_another(context, run, source):
            return Decided(FRESH, why)
        model = Context.of(source, context.config)
        align.load_ensemble(model)
        fitted = _hashes(source)
        here = usable(context).rows["content_hash"].combine_chunks()
        new = pc.invert(pc.is_in(here, fitted)).to_numpy(zero_copy_only=False)
        gone = int(pc.sum(pc.invert(pc.is_in(fitted, here))).as_py() or 0)
        if new.all():
            return Decided(FRESH, "none of the images that the model was made of is there as it was")
        sizes = model.shards(align.STAGE, CLUSTERS_TABLE).read("all", ["size"])["size"].to_numpy()
        old, others = _said(context, model, np.flatnonzero(~new), sizes), _said(context, model, np.flatnonzero(new))
    except (BadShard, BadRecord, GsecError, FileNotFoundError) as error:
        why = f"the model of run {run.id}, which is published, cannot be read: {error}"
        return Decided(FRESH, why, warning=f"All images are clustered from scratch: {why}")
    groups = drift.together(lambda rows: np.asarray(X[rows], np.float32), new, n_threads=context.config.threads)
    if policy == ALWAYS:
        return Decided(FRESH, "train.refit = always", source, new=new, gone=gone, groups=groups)
    images = (run.decision() or {}).get("fitted_images") or len(fitted)
    largest = max(map(len, groups), default=0) * model.config.n_clusters / len(new)
    decision, why, measures = drift.decide(old, others, int(new.sum()), len(new) / images, largest)
    if groups and context.config.train.grow and policy != NEVER:
        decision, why = RENEWED, "new images lie together where no old ones are, and become clusters of their own"
    if policy == NEVER and decision != KEPT:
        decision, why = KEPT, f"train.refit = never; by `auto` it would be {decision}, as {why}"
    return Decided(decision, why, source, measures, new, gone, 0 if decision == RENEWED else images, groups)


def _why_another(context: Context, run: Run, source: Run) -> str | None:
    """Why the model of a published run is no start for this one: in words, or None."""
    if NAME not in run.request()["stages"]:
        return f"run {run.id}, which is published, is of an older gsec"
    done = source.request()["redo"]
    again = [name for name, count in context.redo.items() if count > done.get(name, 0) and name in _ASKS_FOR_ANOTHER]
    if again:
        return f"that is asked for: --redo {', '.join(again)}"
    if told := ", ".join(changed(*(recorded(of.request()["config"]) for of in (context.run, run)))):
        return f"the settings are others than those of run {run.id}, which is published: {told}"
    for stage in encode.stages_of(context.run):
        record = source.stage(stage.name)
        if record is None or record["fingerprint"] != stage.fingerprint(context):
            return f"the encoder, or its checkpoint, is another than that of run {run.id}, which is published"
    return None


def changed(now: PipelineConfig, before: PipelineConfig) -> list[str]:
    """Which settings of a model are others, in words."""
    asked, theirs = _of_model(now), _of_model(before)
    return [f"{name} = {value}, and was {theirs.get(name)}" for name, value in asked.items() if value != theirs.get(name)]


def _of_model(config: PipelineConfig) -> dict[str, Any]:
    """The settings that a model depends on, by their full names."""
    values = output_settings(config)
    for later in ("baseline", "duplicates", "publish"):
        del values[later]
    found = {f"{section}.{name}": value for section, inside in values.items() if isinstance(inside, dict) for name, value in inside.items()}
    found |= {name: value for name, value in values.items() if not isinstance(value, dict)}
    return {name: value for name, value in found.items() if name not in ("train.refit", "train.grow")}


def _hashes(source: Run) -> pa.Array:
    """Content hashes of the images that a model was made of, each once."""
    shards, parts = source.table(ASSIGNMENTS_TABLE)
    return pa.concat_tables(shards.read_all(parts, ["content_hash"]))["content_hash"].unique()


def _said(context: Context, model: Context, rows: NDArray[np.int64], sizes: NDArray[np.int64] | None = None) -> Said:
    """What a model's head says of some of these images; with the ``sizes`` of its clusters, if it was made of them."""
    if not len(rows):
        return Said(*(np.empty(0, np.float32) for _ in range(3)))
    rows = rows[sample_rows(len(rows), LOOKED_AT, 0)]
    features = prepare.features_of(model, text.halves_of(model, context, rows))
    posteriors = head_posteriors(align.load_head(model), features, slice(None), prepare.plan_of(model.config).device).cpu().numpy()
    return Said.of(load_embeddings(context)[rows], posteriors, align.load_centres(model), sizes)


def _groups(context: Context, found: Decided, grown: bool) -> Iterator[dict[str, Any]]:
    """One row for each group."""
    assert found.model is not None, "without a model no image is new"
    model = Context.of(found.model, context.config)
    rows, X = usable(context).rows, load_embeddings(context)
    clusters = [int(np.bincount(align.predicted(model, context, group)[0]).argmax()) for group in found.groups]
    vectors = [unit_rows(X[group]) for group in found.groups]
    centres = unit_rows(np.stack([of_group.mean(0) for of_group in vectors]))
    # Last, for all at once: the embeddings of one run are in memory, and those of the model's take their place.
    like = _like(model, centres)
    for number, (group, of_group, cluster) in enumerate(zip(found.groups, vectors, clusters, strict=True)):
        cosines = of_group @ centres[number]
        order = group[np.argsort(-cosines, kind="stable")]
        yield {
            "group": number,
            "size": len(group),
            "cohesion": float(cosines.mean()),
            "cluster": _clusters(context, found) + number if grown else cluster,
            "images": rows["image_id"].take(order).to_pylist(),
            "like": like[number],
        }


def _like(model: Context, centres: NDArray[np.float32]) -> list[list[str]]:
    """The descriptions of the described images of a model's run that are nearest to each direction (groups, d)."""
    captions = describe.counted_captions(model)["text"]
    similar = centres @ unit_rows(load_embeddings(model)[describe.described_rows(model)]).T
    return [captions.take(nearest).to_pylist() for nearest in np.argsort(-similar, axis=1, kind="stable")[:, :LIKE]]


def in_words(context: Context) -> str | None:
    """What the run decided, in a sentence; None where there was nothing to decide."""
    if not context.decision or context.previous is None:
        return None
    decision, why, moved = (context.decision[name] for name in ("decision", "why", "scratch_moved"))
    then = f" The last fit from scratch moved {moved:.1%} of the images to another cluster." if decision != FRESH and moved is not None else ""
    return f"{_WORDS[decision]}: {why}.{then}"


_WORDS = {
    KEPT: "The published model is kept",
    CONTINUED: "The published model is continued",
    RENEWED: "The published model is renewed",
    FRESH: "All images are clustered from scratch",
}


def warnings(context: Context) -> list[str]:
    """What people should look at in a finished run, beside what holds it back."""
    if not context.decision:
        return []
    found = [context.decision["warning"]] if context.decision["warning"] else []
    for group in emerged(context):
        told = f" Descriptions of the most similar images: {' '.join(group['like'])}" if group["like"] else ""
        where = f"{group['count']:,} of them are in cluster {group['cluster']}."
        found.append(f"{group['size']:,} new images lie together where no old ones are: something new? {where}{told}")
    return found


def emerged(context: Context) -> list[dict[str, Any]]:
    """The groups of new images of a finished run as its table has them, but ``cluster`` is where most of them are now, and ``count`` how many."""
    groups = before.emerging(context).to_pylist() if context.decision else []
    if not groups:
        return []
    shards, parts = context.run.table(ASSIGNMENTS_TABLE)
    assignments = pl.DataFrame(pa.concat_tables(shards.read_all(parts, ["image_id", "cluster"])))
    for group in groups:
        inside = assignments.filter(pl.col("image_id").is_in(group["images"]))["cluster"].value_counts(sort=True)
        group["cluster"], group["count"] = inside.row(0)
    return groups


def _inputs(context: Context) -> list[str]:
    fingerprints = [*(stage.fingerprint(context) for stage in encode.stages_of(context.run)), usable(context).digest]
    if context.previous is None:
        return fingerprints
    asked = {"redo": dict(context.redo), **_of_model(context.config)}
    return [*fingerprints, context.previous.id, json.dumps(asked, sort_keys=True)]


STAGE = Stage(
    name=NAME,
    version=1,
    settings=lambda config: {name: value for name, value in (("refit", config.train.refit), ("grow", config.train.grow)) if value not in (AUTO, False)},
    inputs=_inputs,
    steps=(Step((REFIT_TABLE, EMERGING_TABLE), lambda context: ["all"], decide, lambda context, names: int(usable(context).rows.num_rows), whole=True),),
    on_device=True,
)
