"""The frozen output of each stage. A change of it needs a higher `version` of the stage, or a table would mix old and new rows.

Floats are equal within 1e-3, strings and integers exactly, labels by ARI on well separated images.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from gsec_core.config import PipelineConfig
from gsec_core.stages import align, baseline, describe, encode, fuse, prepare, prototypes, publish, train
from gsec_core.stages.base import Context
from gsec_core.tables import (
    ALIGNMENT_TABLE,
    BASELINE_CLUSTERS_TABLE,
    CLUSTER_NAMES_TABLE,
    CLUSTERS_TABLE,
    COUNTERPARTS_TABLE,
    EMBEDDINGS_TABLE,
    LAYOUT_TABLE,
    REPRESENTATIVE_CAPTIONS_TABLE,
    REPRESENTATIVES_TABLE,
)

from ..pictures import cluster, labels, settings

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())

COLOURS = ["red", "green", "blue"]


def write_colours(folder: Path) -> Path:
    """Four shades of each colour, as PNG, so that no decoder's rounding plays a part."""
    folder.mkdir()
    for colour in COLOURS:
        for shade in range(4):
            image = Image.new("RGB", (40 + shade, 40), colour)
            image.paste("white", (0, 0, 10 + shade, 10))
            image.save(folder / f"{colour}{shade}.png")
    return folder


def test_the_output_of_each_stage_is_the_recorded_output_of_its_version(tmp_path: Path) -> None:
    config = settings(write_colours(tmp_path / "in"), tmp_path / "store", clusters=3, prototypes={"representatives": 5})
    context, _, _ = cluster(config)
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    rows = {row["image_id"]: row for name in embeddings.names() for row in embeddings.read(name).to_pylist()}
    uris = dict(zip(context.live["image_id"].to_pylist(), context.live["uri"].to_pylist(), strict=True))
    by_uri = {uris[image_id]: row for image_id, row in rows.items()}
    found = {
        "encode": {"version": encode.STAGE.version, "rows": [_shown(uri, by_uri[uri]) for uri in ("red0.png", "green1.png", "blue3.png")]},
        "baseline": {
            "version": baseline.STAGE.version,
            "sizes": context.read(baseline.STAGE, BASELINE_CLUSTERS_TABLE)["size"].to_pylist(),
        },
        "prototypes": {"version": prototypes.STAGE.version, "representatives": _representatives(context, uris)},
        "describe": {"version": describe.STAGE.version, "captions": _captions(context, uris)},
        "fuse": {"version": fuse.STAGE.version, "rows": _counterparts(context, uris)},
        "prepare": {"version": prepare.STAGE.version, **_prepared(context)},
        "train": {"version": train.STAGE.version, "members": _members(config)},
        "align": {
            "version": align.STAGE.version,
            "sizes": context.read(align.STAGE, CLUSTERS_TABLE)["size"].to_pylist(),
            "members": context.read(align.STAGE, ALIGNMENT_TABLE).num_rows,
        },
        "publish": {"version": publish.STAGE.version, "names": _names(context), "shown": _roles(context)},
    }
    if os.environ.get("GSEC_WRITE_GOLDEN"):  # set by a developer after the version of a stage was raised
        flat = re.sub(r"\[\s*([^\[\]{}]*?)\s*\]", lambda match: f"[{' '.join(match[1].split())}]", json.dumps(found, indent=1))
        (Path(__file__).parent / "golden.json").write_text(f"{flat}\n")
    _assert_alike(found, GOLDEN)
    cluster_of = labels(context)
    assert adjusted_rand_score([uri[:3] for uri in cluster_of], list(cluster_of.values())) == 1


def _representatives(context: Context, uris: dict[bytes, str]) -> list[list[object]]:
    rows = context.read(prototypes.STAGE, REPRESENTATIVES_TABLE).to_pylist()
    # Sorted, because two images are equally far from their centre.
    nearest = sorted((row["prototype"], round(row["distance"], 4), uris[row["image_id"]]) for row in rows)
    return [[prototype, row["band"], uri, distance] for row, (prototype, distance, uri) in zip(rows, nearest, strict=True)]


def _captions(context: Context, uris: dict[bytes, str]) -> list[list[object]]:
    rows = context.read(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).to_pylist()
    return [[uris[row["image_id"]], row["text"], row["object"], row["attributes"], row["status"], row["model"]] for row in rows[:3]]


def _counterparts(context: Context, uris: dict[bytes, str]) -> list[list[object]]:
    rows = context.shards(fuse.STAGE, COUNTERPARTS_TABLE).read("part-00000").to_pylist()
    return [[uris[row["image_id"]], np.array(row["counterpart"], np.float64)[::48].round(4).tolist()] for row in rows[:3]]


def _names(context: Context) -> list[list[object]]:
    rows = context.read(publish.STAGE, CLUSTER_NAMES_TABLE).to_pylist()
    return [[row["name"], row["description"], row["terms"], row["described"], row["namer"]] for row in rows]


def _roles(context: Context) -> list[str]:
    roles: list[str] = context.read(publish.STAGE, LAYOUT_TABLE)["role"].to_pylist()
    return roles


def _prepared(context: Context) -> dict[str, object]:
    halves = prepare.load_halves(context)
    return {
        "mean": [half.mean[::100].astype(float).round(4).tolist() for half in halves],
        "axes": [None if half.basis is None else list(half.basis.shape) for half in halves],
        "scale": [half.scale[::100].astype(float).round(4).tolist() for half in halves],
        "neighbors": len(prepare.load_neighbors(context).image[0]),
    }


def _members(config: PipelineConfig) -> list[list[object]]:
    """The members after a single outer step: every further step would enlarge differences in the last bits."""
    one_step = config.model_copy(update={"gsec": config.of_method.model_copy(update={"max_steps": 1})})
    members, _ = train.load_members(cluster(one_step)[0])
    return [
        [member.steps, list(member.parameters["weights"].shape), member.parameters["weights"][:, ::200].ravel().astype(float).round(4).tolist()]
        for member in members
    ]


def _shown(uri: str, row: dict[str, object]) -> dict[str, object]:
    embedding, joint = np.array(row["embedding"], np.float64), np.array(row["joint"], np.float64)
    return {
        "uri": uri,
        "image_id": row["image_id"].hex(),  # type: ignore[attr-defined]
        "content_hash_bytes": len(row["content_hash"]),  # type: ignore[arg-type]
        "width": row["width"],
        "height": row["height"],
        "status": row["status"],
        "embedding": np.linalg.norm(embedding.reshape(8, -1), axis=1).round(4).tolist(),
        "joint": joint[::48].round(4).tolist(),
    }


def _assert_alike(found: object, golden: object, at: str = "") -> None:
    if isinstance(golden, dict):
        assert isinstance(found, dict)
        assert found.keys() == golden.keys(), at
        for key in golden:
            _assert_alike(found[key], golden[key], f"{at}.{key}")
    elif isinstance(golden, list):
        assert isinstance(found, list)
        assert len(found) == len(golden), at
        for number, pair in enumerate(zip(found, golden, strict=True)):
            _assert_alike(*pair, f"{at}[{number}]")
    elif isinstance(golden, float):
        assert isinstance(found, float)
        assert abs(found - golden) <= 1e-3, f"{at}: {found} was {golden}"
    else:
        assert found == golden, at
