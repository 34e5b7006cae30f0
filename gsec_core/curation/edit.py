"""Add acts to the log. Each is checked against the clusters as they are curated now, and either refused with a reason or written."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from gsec_core.clustering.kmeans import sample_rows, sample_size
from gsec_core.curation import published
from gsec_core.curation.log import DESCRIBE, FIRST_NEW, NEEDS, RENAME, SHOW, SPLIT, UNDO, Act, Image, packed
from gsec_core.curation.replay import Model, State, nearest, undoings
from gsec_core.curation.run import load_model, log_of
from gsec_core.errors import GsecError, Refused
from gsec_core.stages.base import Context
from gsec_core.store import Store
from gsec_core.store.runs import now

MAX_NAME, MAX_TEXT = 200, 2_000
"""Maximal number of characters of a name, and of a description or a reason."""

MAX_PARTS = 1_000

_HIDING = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]")
"""Matches control characters, characters that reverse the reading order or have no width, and halves of surrogate pairs."""


class Untold(GsecError):
    """``act`` was added to the log, but ``published/PIPELINE.json`` could not be updated. Trying again would add a second act."""

    def __init__(self, sentence: str, act: Act) -> None:
        super().__init__(sentence)
        self.act = act


Divide = Callable[[int, bytes], str]
"""Takes a cluster's key and the bytes of its rows (int64), and returns the packed centres of its parts, the largest part first."""


_ID = re.compile(r"[0-9a-f]{32}")


def add(
    context: Context,
    kind: str,
    *,
    who: str,
    why: str | None = None,
    key: int | None = None,
    keys: Sequence[int] = (),
    text: str | None = None,
    images: Sequence[str] = (),
    parts: int | None = None,
    undoes: int | None = None,
) -> Act:
    """Add an act to the log of a run's pipeline, and update ``published/PIPELINE.json``. Returns the act with its number.

    ``keys`` are the clusters that `merge` merges into ``key``; ``images`` are ids in hex digits; ``parts`` is the number of parts of `split`. Before
    anything is written, raises Refused if the act cannot be applied to the clusters of this run as they are curated now, BadRecord if the log is damaged,
    and Unreachable. Raises `Untold` if the act was added but the file could not be updated.
    """
    if context.of_run is not None:
        raise Refused(f"--run {context.run.id}: it assigns images to the clusters of run {context.of_run.run.id}. Name that run to curate them.")
    check_text("--who", who, MAX_NAME)
    if why is not None:
        check_text("--why", why, MAX_TEXT)
    if kind in (RENAME, DESCRIBE):
        check_text("the name" if kind == RENAME else "the description", text or "", MAX_NAME if kind == RENAME else MAX_TEXT)
        text = (text or "").strip()
    asked = Act(
        kind,
        who.strip(),
        now(),
        why.strip() if why is not None else None,
        key,
        tuple(dict.fromkeys(keys)),
        text,
        tuple(Image(id, "") for id in dict.fromkeys(images)),
        undoes=undoes,
    )
    _check_fields(asked, parts)
    model = load_model(context)
    divide = _divider(context, model, parts or 0)
    act = log_of(context).append(lambda acts: _checked(asked, acts, model, parts or 0, divide))
    try:
        published.tell(Store(context.run.files), log_of(context).pipeline, context)
    except GsecError as error:
        raise Untold(f"It is in the log as act {act.number}, but published/{log_of(context).pipeline}.json could not be written again: {error}", act) from error
    return act


def check_text(what: str, text: str, most: int) -> None:
    """Raises Refused for a text that is empty, longer than ``most`` characters, or contains invisible characters."""
    if not text.strip():
        raise Refused(f"{what} is empty. Give a text.")
    if len(text) > most:
        raise Refused(f"{what} has {len(text):,} characters; at most {most:,} are allowed.")
    if hiding := _HIDING.search(text):
        raise Refused(f"{what} holds the character U+{ord(hiding[0]):04X}, which is invisible or reverses the reading order. Leave it out.")


def _check_fields(act: Act, parts: int | None) -> None:
    """Raises Refused unless the act has exactly the fields that its kind needs."""
    for image in act.images:
        if not _ID.fullmatch(image.id):
            raise Refused(f"image {image.id}: this is not an image's id, which has 32 hex digits.")
    if act.kind not in NEEDS:
        raise Refused(f"{act.kind}: there is no such act. There are {', '.join(NEEDS)}.")
    given = {name for name in ("key", "text", "undoes") if getattr(act, name) is not None}
    given |= {name for name in ("keys", "images") if getattr(act, name)}
    if act.kind == SPLIT:
        if given != {"key"} or parts is None:
            raise Refused("split: give the cluster, and the number of parts.")
        if not 2 <= parts <= MAX_PARTS:
            raise Refused(f"split: {parts} parts; it must be between 2 and {MAX_PARTS:,}.")
    elif given not in NEEDS[act.kind] or parts is not None:
        raise Refused(f"{act.kind}: it takes {' or '.join(_NAMES[needed] for needed in NEEDS[act.kind])}, and nothing else.")


_NAMES = {
    frozenset({"key", "text"}): "a cluster's key and a text",
    frozenset({"key", "keys"}): "two or more clusters' keys",
    frozenset({"key", "images"}): "a cluster's key and images",
    frozenset({"key"}): "a cluster's key",
    frozenset({"images"}): "images",
    frozenset({"undoes"}): "the number of an act",
}


def _checked(act: Act, acts: Sequence[Act], model: Model, parts: int, divide: Divide) -> Act:
    """The complete act, to be written after ``acts``. Raises Refused if it cannot be applied to their result."""
    undone = undoings(acts)
    if act.kind == UNDO:
        _check_undo(act.undoes or 0, acts, undone)
        return act
    state = State(model)
    state.prepare([*acts, act])
    for before in acts:
        if before.number not in undone and before.kind != UNDO:
            state.apply(before)
    act = replace(act, images=tuple(_image(id, state, model) for id, _ in act.images))
    if act.key is not None and act.key not in state.clusters:
        raise Refused(f"{act.kind}: {state.absent(act.key)}")
    if act.kind == RENAME:
        _check_name(act, state)
    if act.kind == SHOW:
        _check_shown(act, state)
    if act.kind == SPLIT:
        given = [key for before in acts for key in (before.key, *before.keys) if key is not None]
        first = max([FIRST_NEW - 1, *given]) + 1
        centres = divide(act.key or 0, state.rows_of(act.key or 0).tobytes())
        act = replace(act, keys=tuple(range(first, first + parts - 1)), centres=centres, encoder=model.encoder)
    if why := state.apply(act):
        raise Refused(f"{act.kind}: {why}")
    return act


def _check_undo(number: int, acts: Sequence[Act], undone: dict[int, int]) -> None:
    if number not in {act.number for act in acts}:
        raise Refused(f"undo: there is no act {number}. gsec curate log lists the acts.")
    if number in undone:
        raise Refused(f"undo: act {number} is undone already, by act {undone[number]}. To bring it back, undo that one.")


def _image(id: str, state: State, model: Model) -> Image:
    row = state.row(id)
    if row is None:
        raise Refused(f"image {id}: this run has no such image.")
    return Image(id, model.content_hashes[row].as_py().hex())


def _check_name(act: Act, state: State) -> None:
    """Raises Refused if another cluster has the name: then a merge may be meant, or it is a mistake."""
    for other in state.clusters.values():
        if other.key != act.key and _folded(other.name) == _folded(str(act.text)):
            merge = f"gsec curate merge {other.key} {act.key}"
            raise Refused(f"rename: cluster {other.key} is called {other.name} already. Give another name, or merge them: {merge}")


def _check_shown(act: Act, state: State) -> None:
    for image in act.images:
        row = state.row(image.id)
        if row is not None and (key := state.is_hidden_with(row)) is not None:
            raise Refused(f"show: image {image.id} is hidden with its cluster. Show the cluster: gsec curate show --cluster {key}")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _divider(context: Context, model: Model, parts: int) -> Divide:
    """A function that finds the centres of a cluster's parts. It is cached: if another act comes first and the images are the same, it is not run twice."""

    @cache
    def divide(cluster: int, rows: bytes) -> str:
        from gsec_core.clustering.spherical_kmeans import SphericalKMeans

        of = np.frombuffer(rows, np.int64)
        if len(of) < parts:
            raise Refused(f"split: cluster {cluster} has {len(of)} images, fewer than {parts} parts.")
        sample = model.embeddings(of[sample_rows(len(of), sample_size(parts), 0)])
        centres = SphericalKMeans(parts, n_threads=context.config.threads).fit(sample).cluster_centers_.astype(np.float16)
        found = nearest(model, of, centres.astype(np.float32))
        assert found is not None, "they are of these images"
        sizes = np.bincount(found, minlength=parts)
        if not sizes.all():
            raise Refused(f"split: the images of cluster {cluster} are too similar to tell {parts} parts apart; {np.count_nonzero(sizes)} can be told apart.")
        return packed(centres[np.argsort(-sizes, kind="stable")])

    return divide
