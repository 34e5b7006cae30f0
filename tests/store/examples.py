"""Small tables as the stages write them, and settings with which a property test draws the same examples each time."""

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings

from gsec_core.tables import IMAGES, embeddings_schema

DIM = 4


def reproducible(max_examples: int, steps: int = 50) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def embeddings(first: int, rows: int = 3) -> pa.Table:
    """Rows ``first`` and following of a table of embeddings; every third image was rejected and has no vector."""
    numbers = range(first, first + rows)
    ok = [number % 3 != 2 for number in numbers]
    vectors = [np.random.default_rng(number).standard_normal(DIM).astype(np.float16) if good else None for number, good in zip(numbers, ok, strict=True)]
    return pa.table(
        {
            "image_id": [number.to_bytes(16, "big") for number in numbers],
            "content_hash": [(number * 7).to_bytes(16, "big") if good else None for number, good in zip(numbers, ok, strict=True)],
            "embedding": vectors,
            "width": [640 + number if good else None for number, good in zip(numbers, ok, strict=True)],
            "height": [480 if good else None for good in ok],
            "status": ["ok" if good else "rejected" for good in ok],
            "reason": [None if good else "not an image" for good in ok],
        },
        schema=embeddings_schema(DIM, None),
    )


def images(versions: dict[str, str | None]) -> pa.Table:
    """A shard of `images`: URI -> version, None for a tombstone."""
    return pa.table(
        {
            "image_id": [image_id(uri) for uri in versions],
            "uri": list(versions),
            "size_bytes": [len(version or "") for version in versions.values()],
            "version": [version or "" for version in versions.values()],
            "deleted": [version is None for version in versions.values()],
        },
        schema=IMAGES,
    )


def image_id(uri: str) -> bytes:
    return uri.encode().rjust(16, b"-")
