"""Small clusterings, random acts of curation, and a slow reference for their meaning: image by image, with dictionaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.curation import Act, Curated, Image, Model, Named
from gsec_core.curation.log import DESCRIBE, FIRST_NEW, HIDE, MERGE, MOVE, NEEDS, RENAME, SHOW, SPLIT, STAR, UNDO, UNSTAR, packed

ENCODER = "lite"
DIM = 3


def image_id(number: int) -> str:
    return f"{number:032x}"


def content(number: int, version: int = 0) -> str:
    return f"{number * 1000 + version:032x}"


def model(
    images: int = 12,
    clusters: int = 4,
    encoder: str = ENCODER,
    without: Sequence[int] = (),
    changed: Sequence[int] = (),
    keys: Sequence[int] | None = None,
) -> Model:
    """Images 0, 1, ... in turn in clusters 0, 1, ... or ``keys``; images in ``without`` are missing, those in ``changed`` have other bytes."""
    numbers = [number for number in range(images) if number not in without]
    given = np.array(range(clusters) if keys is None else keys, np.int32)
    vectors = np.random.default_rng(0).standard_normal((images, DIM)).astype(np.float16)[numbers]

    def embeddings(rows: NDArray[np.int64]) -> NDArray[np.float16]:
        return vectors[rows]

    return Model(
        pa.array([bytes.fromhex(image_id(number)) for number in numbers], pa.binary(16)),
        pa.array([bytes.fromhex(content(number, int(number in changed))) for number in numbers], pa.binary(16)),
        given[np.array(numbers, np.int64) % len(given)],
        tuple(Named(int(key), f"cluster {key}", None) for key in given),
        encoder,
        embeddings,
    )


def random_act(random: Random, before: Sequence[Act], who: str = "ann", images: int = 12, clusters: int = 4) -> Act:
    """A random act, sensible or not, after the acts ``before``."""
    kind = random.choice(list(NEEDS))
    given = [key for act in before for key in act.keys if act.kind == SPLIT]
    keys = [*range(clusters), *given[-4:], 77]

    def about() -> tuple[Image, ...]:
        return tuple(Image(image_id(number), content(number)) for number in random.sample(range(images + 1), random.randint(1, 3)))

    said = {"kind": kind, "who": who, "at": "2026-01-01T00:00:00.000+00:00"}
    if kind in (RENAME, DESCRIBE):
        return Act(**said, key=random.choice(keys), text=f"name {random.randint(0, 9)}")
    if kind == MERGE:
        return Act(**said, key=random.choice(keys), keys=tuple(random.sample(keys, random.randint(1, 2))))
    if kind == SPLIT:
        parts = random.randint(2, 3)
        first = max([FIRST_NEW - 1, *given]) + 1
        centres = np.random.default_rng(random.randint(0, 99)).standard_normal((parts, DIM))
        encoder = random.choice([ENCODER] * 9 + ["another"])
        return Act(**said, key=random.choice(keys), keys=tuple(range(first, first + parts - 1)), centres=packed(centres), encoder=encoder)
    if kind == MOVE:
        return Act(**said, key=random.choice(keys), images=about())
    if kind == UNDO:
        return Act(**said, undoes=random.randint(1, len(before) + 1))
    return Act(**said, images=about()) if random.random() < 0.5 else Act(**said, key=random.choice(keys))


@dataclass
class Told:
    """A curated clustering in the form that `slowly` returns."""

    keys: dict[str, int]
    hidden: set[str]
    starred: set[str]
    clusters: dict[int, tuple[str, str | None, bool, bool]]
    """Key -> name, description, hidden, starred."""
    open: list[int]


def slowly(acts: Sequence[Act], model: Model) -> Told:
    """Apply the acts to the model's clusters, image by image: the reference for `replay`."""
    ids = [value.hex() for value in model.image_ids.to_pylist()]
    hashes = dict(zip(ids, (value.hex() for value in model.content_hashes.to_pylist()), strict=True))
    keys = dict(zip(ids, model.keys.tolist(), strict=True))
    vectors = {id: model.embeddings(np.array([row])).astype(np.float32)[0] for row, id in enumerate(ids)}
    names: dict[int, str] = {named.key: named.name for named in model.clusters}
    descriptions: dict[int, str | None] = {named.key: named.description for named in model.clusters}
    hidden_clusters: set[int] = set()
    starred_clusters: set[int] = set()
    marked: dict[str, set[str]] = {HIDE: set(), STAR: set()}
    open_acts: list[int] = []

    undoing: dict[int | None, list[Act]] = {}
    for act in acts:
        if act.kind == UNDO:
            undoing.setdefault(act.undoes, []).append(act)

    def counts(act: Act) -> bool:
        return not any(other.number > act.number and counts(other) for other in undoing.get(act.number, ()))

    for act in acts:
        if not counts(act):
            continue
        good = [image.id for image in act.images if hashes.get(image.id) == image.content_hash]
        if act.kind == UNDO:
            if not any(other.number == act.undoes for other in acts) or (act.undoes or 0) >= act.number:
                open_acts.append(act.number)
            continue
        if (act.key is not None and act.key not in names) or len(good) < len(act.images):
            open_acts.append(act.number)
        if act.key is not None and act.key not in names:
            continue
        key = -1 if act.key is None else act.key
        if act.kind == RENAME:
            names[key] = act.text or ""
        elif act.kind == DESCRIBE:
            descriptions[key] = act.text
        elif act.kind == MERGE:
            for other in act.keys:
                if other == key or other not in names:
                    open_acts.append(act.number)
                    continue
                keys = {id: key if its == other else its for id, its in keys.items()}
                for of in (names, descriptions):
                    del of[other]
                hidden_clusters.discard(other)
                starred_clusters.discard(other)
        elif act.kind == SPLIT:
            if act.encoder != model.encoder or any(other in names for other in act.keys):
                open_acts.append(act.number)
                continue
            directions = [direction / np.linalg.norm(direction) for direction in act.directions]
            for id in [id for id, its in keys.items() if its == key]:
                part = max(range(len(directions)), key=lambda number: float(vectors[id] @ directions[number]))
                keys[id] = [key, *act.keys][part]
            for other in act.keys:
                number = 2
                while f"{names[key]} ({number})" in names.values():
                    number += 1
                names[other], descriptions[other] = f"{names[key]} ({number})", descriptions[key]
                if key in hidden_clusters:
                    hidden_clusters.add(other)
        elif act.kind == MOVE:
            keys |= dict.fromkeys(good, key)
        else:
            of_images, of_clusters = (marked[HIDE], hidden_clusters) if act.kind in (HIDE, SHOW) else (marked[STAR], starred_clusters)
            on = act.kind in (HIDE, STAR)
            if act.key is None:
                (of_images.update if on else of_images.difference_update)(good)
            else:
                (of_clusters.add if on else of_clusters.discard)(act.key)
    hidden = marked[HIDE] | {id for id, key in keys.items() if key in hidden_clusters}
    clusters = {key: (name, descriptions[key], key in hidden_clusters, key in starred_clusters) for key, name in names.items()}
    return Told(keys, hidden, marked[STAR], clusters, sorted(set(open_acts)))


def told(found: Curated, model: Model) -> Told:
    """The result of `replay` in the same form."""
    ids = [value.hex() for value in model.image_ids.to_pylist()]
    clusters = {row.key: (row.name, row.description, row.hidden, row.starred) for row in found.clusters}
    sizes = {row.key: row.size for row in found.clusters}
    assert sizes == {key: int((found.keys == key).sum()) for key in sizes}
    hidden, starred = ({id for id, is_so in zip(ids, values, strict=True) if is_so} for values in (found.hidden, found.starred))
    return Told(dict(zip(ids, found.keys.tolist(), strict=True)), hidden, starred, clusters, [one.act.number for one in found.open])


assert {RENAME, DESCRIBE, MERGE, SPLIT, MOVE, HIDE, SHOW, STAR, UNSTAR, UNDO} == set(NEEDS), "every kind of act must have an example here"
