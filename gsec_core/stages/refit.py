"""refit: decides whether the published model still fits the images, and finds groups of new images unlike the old ones.

Reads `embeddings` and, of the published run, `assignments` and the model; writes `refit` (one row: the decision, the reason and the numbers behind it)
and `emerging` (one row for each group of new images that lie together where no old ones are). The stages of the run depend on the decision: a run that
keeps the model does not train.
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
from gsec_core.clustering.kmeans import sample_rows, unit_rows
from gsec_core.config import PipelineConfig, recorded
from gsec_core.devices import set_threads
from gsec_core.errors import BadShard, GsecError, Unreachable
from gsec_core.section import output_settings
from gsec_core.stages import align, baseline, before, describe, encode, enhance, prepare, prototypes, text, train
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import all_images, load_embeddings, usable
from gsec_core.store import Run
from gsec_core.tables import ASSIGNMENTS_TABLE, CLUSTERS_TABLE, CONTINUED, EMBEDDINGS_TABLE, EMERGING, EMERGING_TABLE, FRESH, KEPT, REFIT, REFIT_TABLE, RENEWED

NAME = "refit"

AUTO, NEVER, ALWAYS = "auto", "never", "always"
"""Policies of `train.refit`."""

LOOKED_AT = 4096
"""The model is judged by at most this number of the images that it was fitted on, and as many others."""

LIKE = 3
"""Number of descriptions of similar images that are shown for a group."""

_TEXT = tuple(stage for stage in text.ALL_STAGES if stage is not encode.SECOND)

_LEFT_OUT = {stage.name for stage in (baseline.STAGE, prototypes.STAGE, describe.STAGE, *_TEXT, prepare.STAGE, train.STAGE, enhance.STAGE)}
"""Names of the stages that a run does not have if it keeps the published model."""

_ASKS_FOR_ANOTHER = {*_LEFT_OUT, encode.STAGE.name, encode.SECOND.name, align.STAGE.name}
"""Stages and counters whose redo rules out keeping the model."""


@dataclass(frozen=True)
class Decided:
    """Decision about the published model."""

    decision: str
    why: str
    model: Run | None = None
    """The run that fitted the model, if the model can be read."""
    measures: Sequence[Measure] = ()
    new: NDArray[np.bool_] | None = None
    """(n,): whether the model was not fitted on the image; None without a model."""
    gone: int | None = None
    fitted_images: int = 0
    groups: Sequence[NDArray[np.int64]] = ()
    """Rows of new images that lie together."""
    warning: str | None = None


def decide(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Decide about the model, and find the groups of new images."""
    set_threads(context.config.threads)
    n, found = len(usable(context)), _decided(context)
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


def _is_own(context: Context, error: BadShard) -> bool:
    """Whether a damaged shard holds embeddings of this run's images, which its stages encode can make again."""
    own = {context.shards(stage, EMBEDDINGS_TABLE).directory for stage in encode.stages_of(context.run)}
    return any(path.rpartition("/")[0] in own for path in error.paths)


def _scratch_moved(run: Run | None) -> float | None:
    """Share of images that the pipeline's last fit from scratch moved to another cluster, as recorded; None if unknown."""
    if run is None or (decision := run.decision()) is None:
        return None
    if decision["decision"] == FRESH:
        return (run.result() or {}).get("moved")
    return cast("float | None", decision["scratch_moved"])


def _clusters(context: Context, found: Decided) -> int:
    """Number of clusters of the model, which may have grown; without a model, the number in the settings."""
    return context.config.n_clusters if found.model is None else found.model.config().n_clusters


def _decided(context: Context) -> Decided:
    """The decision, without recording it. A damaged model is a reason to fit from scratch.

    Raises BadShard for damaged tables of this run, and Unreachable if the store does not answer: neither says anything about the model.
    """
    run, policy = context.previous, context.config.train.refit
    if run is None:
        return Decided(FRESH, "nothing is published yet")
    X = load_embeddings(context)  # outside the try, since embeddings that are not finite do not concern the model
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
            return Decided(FRESH, "all images that the model was fitted on are gone or have changed")
        sizes = model.read(align.STAGE, CLUSTERS_TABLE, ["size"])["size"].to_numpy()
        old, others = _said(context, model, np.flatnonzero(~new), sizes), _said(context, model, np.flatnonzero(new))
    except (GsecError, FileNotFoundError) as error:
        if isinstance(error, Unreachable) or (isinstance(error, BadShard) and _is_own(context, error)):
            raise
        why = f"the model of run {run.id}, which is published, cannot be read: {error}"
        return Decided(FRESH, why, warning=f"All images are clustered from scratch: {why}")
    groups = drift.together(lambda rows: np.asarray(X[rows], np.float32), new, n_threads=context.config.threads)
    if policy == ALWAYS:
        return Decided(FRESH, "train.refit = always", source, new=new, gone=gone, groups=groups)
    images = (run.decision() or {}).get("fitted_images") or len(fitted)
    largest = max(map(len, groups), default=0) * model.config.n_clusters / len(new)
    decision, why, measures = drift.decide(old, others, int(new.sum()), len(new) / images, largest)
    if groups and context.config.train.grow and policy != NEVER:
        decision, why = RENEWED, "new images form groups where there are no old images, and these become clusters of their own"
    if policy == NEVER and decision != KEPT:
        decision, why = KEPT, f"train.refit = never; by `auto` it would be {decision}, as {why}"
    return Decided(decision, why, source, measures, new, gone, 0 if decision == RENEWED else images, groups)


def _why_another(context: Context, run: Run, source: Run) -> str | None:
    """Reason in words why this run cannot start from the published run's model, or None."""
    if NAME not in run.request()["stages"]:
        return f"run {run.id}, which is published, was made by an older gsec"
    done = before.answered(context)
    more = [name for name, count in context.redo.items() if count > done.get(name, 0)]
    if again := [name for name in more if name in _ASKS_FOR_ANOTHER]:
        return f"it was requested: --redo {', '.join(again)}"
    if describe.retries(context.config.describe, context.redo) in more:
        return "it was requested: --retry-failed"
    if told := ", ".join(changed(*(recorded(of.request()["config"]) for of in (context.run, run)))):
        return f"the settings differ from those of run {run.id}, which is published: {told}"
    for stage in encode.stages_of(context.run):
        if source.fingerprint(stage.name) != stage.fingerprint(context):
            return f"the encoder, or its checkpoint, is not that of run {run.id}, which is published"
    ours, theirs = _files_and_versions(context.run), _files_and_versions(run)
    if others := [name for name, what in ours.items() if what != theirs.get(name, what)]:
        return f"files that the settings name, or gsec itself, changed since run {run.id}, which is published: stage {', '.join(others)}"
    return None


def _files_and_versions(run: Run) -> dict[str, Any]:
    """What files and versions the stages of a model depend on, as recorded with the request; nothing for a run of an older gsec.

    Descriptions from a table are left out: rows for new images are added to it from night to night.
    """
    from_table = str(run.asked().describe.captioner).startswith("table:")
    left_out = {baseline.STAGE.name, *([describe.STAGE.name] if from_table else [])}
    return {name: what for name, what in run.request().get("identity", {}).items() if name in _ASKS_FOR_ANOTHER - left_out}


def changed(now: PipelineConfig, before: PipelineConfig) -> list[str]:
    """The settings of a model that differ, as phrases with both values."""
    asked, theirs = _of_model(now), _of_model(before)
    return [f"{name} is {_shown(value)}, and was {_shown(theirs.get(name))}" for name, value in asked.items() if value != theirs.get(name)]


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)


def _of_model(config: PipelineConfig) -> dict[str, Any]:
    """The settings that a model depends on, by their full names."""
    values = output_settings(config)
    for later in ("baseline", "duplicates", "publish"):
        del values[later]
    found = {f"{section}.{name}": value for section, inside in values.items() if isinstance(inside, dict) for name, value in inside.items()}
    found |= {name: value for name, value in values.items() if not isinstance(value, dict)}
    return {name: value for name, value in found.items() if name not in ("train.refit", "train.grow")}


def _hashes(source: Run) -> pa.Array:
    """Distinct content hashes of the images that a model was fitted on."""
    return source.read_table(ASSIGNMENTS_TABLE, ["content_hash"])["content_hash"].unique()


def _said(context: Context, model: Context, rows: NDArray[np.int64], sizes: NDArray[np.int64] | None = None) -> Said:
    """Predictions of a model's head for a sample of the given rows. ``sizes`` of its clusters are given if the model was fitted on these rows."""
    from gsec_core.clustering.ensemble import head_posteriors

    if not len(rows):
        return Said(*(np.empty(0, np.float32) for _ in range(3)))
    rows = rows[sample_rows(len(rows), LOOKED_AT, 0)]
    features = prepare.features_of(model, text.halves_of(model, context, rows))
    posteriors = head_posteriors(align.load_head(model), features, slice(None), prepare.plan_of(model.config).device).cpu().numpy()
    return Said.of(load_embeddings(context)[rows], posteriors, align.load_centres(model), sizes)


def _groups(context: Context, found: Decided, grown: bool) -> Iterator[dict[str, Any]]:
    """Yield a row of schema EMERGING for each group."""
    assert found.model is not None, "without a model no image is new"
    model = Context.of(found.model, context.config)
    rows, X = usable(context).rows, load_embeddings(context)
    clusters = [int(np.bincount(align.predicted(model, context, group)[0]).argmax()) for group in found.groups]
    vectors = [unit_rows(X[group]) for group in found.groups]
    centres = unit_rows(np.stack([of_group.mean(0) for of_group in vectors]))
    like = _like(model, context, centres)
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


def _like(model: Context, context: Context, centres: NDArray[np.float32]) -> list[list[str]]:
    """For each direction in ``centres`` (groups, d), the descriptions of the nearest images that the model's run described and that are still there.

    They are found among the images of this run: the model's list of images may have been damaged since, and then only the newest generation has them all.
    """
    captions = describe.counted_captions(model)
    row = pc.index_in(captions["content_hash"], value_set=usable(context).rows["content_hash"].combine_chunks())
    there = pc.is_valid(row)
    texts, rows = captions["text"].filter(there), row.filter(there).to_numpy()
    similar = centres @ unit_rows(load_embeddings(context)[rows]).T
    return [texts.take(nearest).to_pylist() for nearest in np.argsort(-similar, axis=1, kind="stable")[:, :LIKE]]


def in_words(context: Context) -> str | None:
    """The run's decision in a sentence; None if there was nothing to decide."""
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
    """Remarks on a finished run that people should read but that do not prevent its publication."""
    if not context.decision:
        return []
    found = [context.decision["warning"]] if context.decision["warning"] else []
    for group in emerged(context):
        told = f" Descriptions of the most similar images: {' '.join(group['like'])}" if group["like"] else ""
        where = f"{group['count']:,} of them are in cluster {group['cluster']}."
        found.append(f"{group['size']:,} new images form a group where there are no old images. Is this something new? {where}{told}")
    return found


def emerged(context: Context) -> list[dict[str, Any]]:
    """The rows of table `emerging` of a finished run; ``cluster`` is replaced by the cluster that holds most of the group now, and ``count`` of them."""
    groups = before.emerging(context).to_pylist() if context.decision else []
    if not groups:
        return []
    assignments = pl.DataFrame(context.run.read_table(ASSIGNMENTS_TABLE, ["image_id", "cluster"]))
    for group in groups:
        inside = assignments.filter(pl.col("image_id").is_in(group["images"]))["cluster"].value_counts(sort=True)
        group["cluster"], group["count"] = inside.row(0)
    return groups


def _inputs(context: Context) -> list[str]:
    fingerprints = [*(stage.fingerprint(context) for stage in encode.stages_of(context.run)), usable(context).digest]
    if context.previous is None:
        return fingerprints
    # The settings of the request, as the decision may have changed the number of clusters of the context's.
    asked = {"redo": dict(context.redo), **_of_model(context.run.asked())}
    if identity := _files_and_versions(context.run):
        asked["identity"] = identity
    return [*fingerprints, context.previous.id, json.dumps(asked, sort_keys=True)]


STAGE = Stage(
    name=NAME,
    version=1,
    settings=lambda config: {name: value for name, value in (("refit", config.train.refit), ("grow", config.train.grow)) if value not in (AUTO, False)},
    inputs=_inputs,
    steps=(Step((REFIT_TABLE, EMERGING_TABLE), decide, units=all_images, whole=True),),
    on_device=True,
)
