"""The Arrow schema of every table, column by column.

Vectors are ``fixed_size_list<float16>``: their length is the encoder's, so those schemas are functions of it.
"""

import pyarrow as pa


def vector(length: int) -> pa.DataType:
    """A unit vector of ``length`` float16 values."""
    return pa.list_(pa.field("element", pa.float16(), nullable=False), length)


def _column(name: str, type_: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"meaning": meaning})


IMAGE_ID = _column("image_id", pa.binary(16), "xxh3-128 of the URI")
URI = _column("uri", pa.string(), "where the image is, relative to the corpus's source")
CONTENT_HASH = _column("content_hash", pa.binary(16), "xxh3-128 of the file's bytes")

OK, REJECTED, MISSING = "ok", "rejected", "missing"
"""An image's status: usable; never usable with these bytes; not to be read when it was tried, looked at again by the next ingest."""

IMAGES = pa.schema(
    [
        IMAGE_ID,
        URI,
        _column("size_bytes", pa.int64(), "bytes, -1 where listing does not tell"),
        _column("version", pa.string(), "what changes when the file does: ETag, or modification time and size"),
        _column("deleted", pa.bool_(), "a tombstone: the image vanished from the source"),
    ]
)


def embeddings_schema(dim: int, joint_dim: int | None) -> pa.Schema:
    """One row an image of the shard of the same name in `images`, tombstones excepted."""
    joint = [_column("joint", vector(joint_dim), "unit embedding in the space shared with text", nullable=True)] if joint_dim else []
    return pa.schema(
        [
            IMAGE_ID,
            CONTENT_HASH.with_nullable(True),
            _column("embedding", vector(dim), "unit embedding; null unless status is ok", nullable=True),
            *joint,
            _column("width", pa.int32(), "pixels as shown; null unless status is ok", nullable=True),
            _column("height", pa.int32(), "pixels as shown; null unless status is ok", nullable=True),
            _column("status", pa.string(), "ok, rejected or missing"),
            _column("reason", pa.string(), "why it is not ok", nullable=True),
        ]
    )


THUMBNAILS = pa.schema([IMAGE_ID, _column("thumbnail", pa.binary(), "JPEG; of ok images only")])

ASSIGNMENTS = pa.schema(
    [
        IMAGE_ID,
        URI,
        CONTENT_HASH,
        _column("cluster", pa.int32(), "0 is the largest cluster"),
        _column("confidence", pa.float32(), "mean aligned posterior of the cluster; for k-means the cosine to its centre"),
        _column("margin", pa.float32(), "confidence less that of the second best cluster"),
        _column("agreement", pa.float32(), "share of members that agree; null where there is one labelling only", nullable=True),
        _column("is_duplicate", pa.bool_(), "another live image has the same bytes"),
    ]
)


def centres_schema(dim: int) -> pa.Schema:
    """One row a cluster."""
    return pa.schema(
        [
            _column("cluster", pa.int32(), "0 is the largest cluster"),
            _column("centre", pa.list_(pa.field("element", pa.float32(), nullable=False), dim), "unit vector in the space of the embeddings"),
        ]
    )


CLUSTERS = pa.schema(
    [
        _column("cluster", pa.int32(), "0 is the largest cluster"),
        _column("size", pa.int64(), "images"),
        _column("cohesion", pa.float32(), "mean cosine of its images to its centre; null if empty", nullable=True),
        _column("separation", pa.float32(), "1 - cosine to the nearest other centre"),
        _column("agreement", pa.float32(), "mean agreement of its images; null where there is one labelling only", nullable=True),
    ]
)


EMBEDDINGS_TABLE = "embeddings"
THUMBNAILS_TABLE = "thumbnails"
BASELINE_CENTRES_TABLE = "baseline_centres"
BASELINE_TABLE = "baseline"
BASELINE_CLUSTERS_TABLE = "baseline_clusters"
