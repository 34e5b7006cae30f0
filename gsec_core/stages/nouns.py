"""nouns: selects the words of a vocabulary that represent the images, and makes a text counterpart for every image from them.

Reads `vocabulary` and `embeddings`; writes `semantic_centres` (one row for each centre), `selected_nouns` (one row for each word that is kept) and
`counterparts` (one row for each image; none with a method that uses the nouns themselves). The method's `NounSelection` says which words are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from gsec_core import methods
from gsec_core.clustering.kmeans import Rows, unit_rows
from gsec_core.config import PipelineConfig
from gsec_core.devices import native_threads
from gsec_core.errors import Refused
from gsec_core.section import output_settings
from gsec_core.stages import encode, vocabulary
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once, silent
from gsec_core.stages.canonical import all_images, check_enough, has_joint, load_joint, load_parts, part_names, parts, rows_of_parts, usable
from gsec_core.store.arrays import make_table, to_matrix
from gsec_core.tables import (
    COUNTERPARTS_TABLE,
    SELECTED_NOUNS_TABLE,
    SEMANTIC_CENTRES_TABLE,
    centres_schema,
    counterparts_schema,
    selected_nouns_schema,
)
from gsec_core.text import NounSelection
from gsec_core.text.nouns import centre_count, kept_nouns, noun_counterparts, semantic_centres
from gsec_core.text.vocabulary import shown


def place(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Compute the semantic centres from all usable images."""
    from sklearn import config_context

    config, X = context.config, load_joint(context)
    with config_context(assume_finite=True), native_threads(config.threads):
        if selection_of(config).per_centre is None:
            centres = unit_rows(vocabulary.load_words(context)[1])
        else:
            centres = semantic_centres(X, _count(context), random_state=config.nouns.random_state, n_threads=config.threads)
    progress(len(X))
    yield Finished("all", (make_table([np.arange(len(centres)), centres], centres_schema(X.shape[1])),))


def select(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Select the words to keep. Raises Refused if they are fewer than the clusters."""
    words, vectors = vocabulary.load_words(context)
    centres = to_matrix(context.read(STAGE, SEMANTIC_CENTRES_TABLE), "centre")
    with native_threads(context.config.threads):
        found = kept_nouns(vectors, centres, selection_of(context.config))
    if len(found.noun) < context.config.n_clusters:
        raise Refused(
            f"text.vocabulary = {context.config.text.vocabulary}: only {len(found.noun)} of its {len(words):,} words tell the images apart, fewer than "
            f"clusters = {context.config.n_clusters}. Give more words, or ask for fewer clusters."
        )
    columns = [found.noun, [words[noun] for noun in found.noun], found.centre, found.rank, found.score, vectors[found.noun]]
    yield Finished("all", (make_table(columns, selected_nouns_schema(vectors.shape[1])),), {"nouns": len(found.noun)})


def combine(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Make the counterparts of the images of the named parts."""
    joint = load_joint(context)
    for part in parts(context, names):
        found = _counterparts(context, joint[part.start : part.stop], progress)
        yield Finished(part.name, (make_table([part.rows["image_id"], found], counterparts_schema(found.shape[1])),))


def counterparts_of(context: Context, images: Context, rows: Rows) -> NDArray[np.float16] | None:
    """The counterparts (rows, joint_dim) of the given images of the run ``images``, by the nouns of the run ``context``; see `load_counterparts`."""
    return counterparts_from(context, load_joint(images)[rows])


def counterparts_from(context: Context, joint: NDArray[np.float16]) -> NDArray[np.float16] | None:
    """As `counterparts_of`, for given embeddings in the space shared with text, (rows, joint_dim)."""
    if selection_of(context.config).tau is None:
        return joint if has_joint(context) else None
    return _counterparts(context, joint, silent)


def _counterparts(context: Context, joint: NDArray[np.float16], progress: Progress) -> NDArray[np.float16]:
    _, kept = load_nouns(context)
    found = []
    with native_threads(context.config.threads):
        for block in noun_counterparts(joint, kept, selection_of(context.config)):
            found.append(block.astype(np.float16))
            progress(len(block))
    return np.concatenate(found)


@once
def load_nouns(context: Context) -> tuple[list[str], NDArray[np.float16]]:
    """The selected words, in the form for display, and their vectors (kept, joint_dim)."""
    table = context.read(STAGE, SELECTED_NOUNS_TABLE, ["word", "embedding"])
    return [shown(word) for word in table["word"].to_pylist()], to_matrix(table, "embedding")


def load_counterparts(context: Context) -> NDArray[np.float16] | None:
    """The counterparts of all images in canonical order, (n, joint_dim); a memory map as in `canonical.load_embeddings`.

    None if there are none beside the images; see `has_counterparts`.
    """
    if selection_of(context.config).tau is None:
        return load_joint(context) if has_counterparts(context) else None
    return load_parts(context, context.shards(STAGE, COUNTERPARTS_TABLE), "counterpart")


def has_counterparts(context: Context) -> bool:
    """Whether counterparts differ from the images. False if the method uses the nouns themselves and the embeddings are in the same space as the nouns."""
    return selection_of(context.config).tau is not None or has_joint(context)


def _count(context: Context) -> int:
    return centre_count(len(usable(context)), context.config.n_clusters, selection_of(context.config).images_per_centre)


def selection_of(config: PipelineConfig) -> NounSelection:
    """The noun selection of the method, changed as set. Raises Refused for a setting that the method does not have."""
    of_method = methods.find(config.method).nouns(config.n_clusters)
    given = {name: value for name in ("images_per_centre", "per_centre", "tau") if (value := getattr(config.nouns, name)) is not None}
    for name, value in given.items():
        if getattr(of_method, name) is None:
            raise Refused(f"nouns.{name} = {value}: method {config.method} has no such setting. Leave it out.")
    return replace(of_method, **given)


def _settings(config: PipelineConfig) -> dict[str, object]:
    selection = {field.name: value for field in fields(NounSelection) if (value := getattr(selection_of(config), field.name)) != field.default}
    return {**output_settings(config.nouns), **selection}


def _inputs(context: Context) -> list[str]:
    check_enough(context)
    return [vocabulary.STAGE.fingerprint(context), encode.STAGE.fingerprint(context), usable(context).digest, str(_count(context))]


def check(config: PipelineConfig) -> None:
    """Raises Refused for a setting of nouns that the method does not have, or if the method needs one word per cluster and the numbers differ."""
    numbered = config.model_copy(update={"clusters": 2}) if isinstance(config.clusters, str) else config
    words = len(vocabulary.words_of(config).words)
    if selection_of(numbered).per_centre is None and words != config.clusters:
        raise Refused(
            f"clusters = {config.clusters}: method {config.method} takes a name for each, and text.vocabulary = {config.text.vocabulary} has {words:,} "
            f"different ones. Give clusters = {words}, or another file, with one name on each line."
        )


def _parts(context: Context) -> list[str]:
    return [] if selection_of(context.config).tau is None else part_names(context)


STAGE = Stage(
    name="nouns",
    version=1,
    settings=_settings,
    inputs=_inputs,
    steps=(
        Step((SEMANTIC_CENTRES_TABLE,), place, units=all_images, whole=True),
        Step((SELECTED_NOUNS_TABLE,), select, whole=True),
        Step((COUNTERPARTS_TABLE,), combine, _parts, rows_of_parts, whole=True),
    ),
)
