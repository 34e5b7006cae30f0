"""The Arrow schema of every table, column by column.

Vectors are ``fixed_size_list<float16>``. Their length depends on the encoder, so that schemas with vectors are functions of it.
"""

from collections.abc import Iterable

import pyarrow as pa


def vector(length: int) -> pa.DataType:
    """A unit vector of ``length`` float16 values."""
    return pa.list_(pa.field("element", pa.float16(), nullable=False), length)


def _floats(length: int = -1) -> pa.DataType:
    return pa.list_(pa.field("element", pa.float32(), nullable=False), length)


def _column(name: str, type_: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"meaning": meaning})


IMAGE_ID = _column("image_id", pa.binary(16), "xxh3-128 of the URI")
URI = _column("uri", pa.string(), "where the image is, relative to the corpus's source")
CONTENT_HASH = _column("content_hash", pa.binary(16), "xxh3-128 of the file's bytes")

OK, REJECTED, MISSING = "ok", "rejected", "missing"
"""Status of an image: usable; not usable with these bytes; could not be read, to be tried again by the next ingest."""

KEPT, CONTINUED, RENEWED, FRESH = "kept", "continued", "renewed", "from scratch"
"""Decisions about the published model: it is kept and labels new images; its members are trained further; new members are fitted, and images stay in
their clusters unless the new members clearly disagree; or nothing of it is used."""

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
    """One row for each image in the shard of the same name in `images`, except deleted ones."""
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
            _column("reason", pa.string(), "why it is not ok, or a harmless fault of an ok image", nullable=True),
        ]
    )


THUMBNAILS = pa.schema([IMAGE_ID, _column("thumbnail", pa.binary(), "JPEG; only of ok images")])

ASSIGNMENTS = pa.schema(
    [
        IMAGE_ID,
        URI,
        CONTENT_HASH,
        _column("cluster", pa.int32(), "0 is the largest cluster"),
        _column(
            "confidence",
            pa.float32(),
            "about the share of members that agree: mean aligned posterior, smoothed and calibrated; for k-means the cosine to its centre",
        ),
        _column("margin", pa.float32(), "confidence minus that of the second best cluster"),
        _column("agreement", pa.float32(), "share of members that agree; null if there is only one labelling", nullable=True),
        _column(
            "outlier",
            pa.float32(),
            "how many standard deviations it is farther from its cluster's centre than the cluster's images; null if there is only one labelling",
            nullable=True,
        ),
        _column("is_duplicate", pa.bool_(), "another live image has the same bytes"),
    ]
)


def centres_schema(dim: int) -> pa.Schema:
    """One row for each cluster."""
    return pa.schema(
        [
            _column("cluster", pa.int32(), "0 is the largest cluster"),
            _column("centre", _floats(dim), "unit vector in the space of the embeddings"),
        ]
    )


CLUSTERS = pa.schema(
    [
        _column("cluster", pa.int32(), "0 is the largest cluster"),
        _column("size", pa.int64(), "images"),
        _column("cohesion", pa.float32(), "mean cosine of its images to its centre; null if empty", nullable=True),
        _column("separation", pa.float32(), "1 - cosine to the nearest other centre"),
        _column("agreement", pa.float32(), "mean agreement of its images; null if there is only one labelling", nullable=True),
        _column(
            "stability",
            pa.float32(),
            "mean overlap (Jaccard) with the members' clusters; below .5 the members do not agree on it; null if there is only one labelling",
            nullable=True,
        ),
    ]
)


def prototypes_schema(dim: int) -> pa.Schema:
    """One row for each micro-cluster."""
    return pa.schema(
        [
            _column("prototype", pa.int32(), "0 is the largest"),
            _column("centre", _floats(dim), "unit vector in the space of the embeddings"),
            _column("size", pa.int64(), "images"),
        ]
    )


PROTOTYPE = _column("prototype", pa.int32(), "its micro-cluster")
BAND = _column("band", pa.int32(), "0 is its core, the last its rim")

REPRESENTATIVES = pa.schema([PROTOTYPE, BAND, IMAGE_ID, URI, CONTENT_HASH, _column("distance", pa.float32(), "1 - cosine to the centre")])

DESCRIBED, FREE, FAILED = "described", "free", "failed"
"""Status of a caption: follows the template and is parsed; free text outside the template; finally failed, such as refused or empty."""

_ANSWER = [
    _column("text", pa.string(), "the description; null if failed", nullable=True),
    _column("object", pa.string(), "the main object, if the reply has the form of the template", nullable=True),
    _column(
        "attributes", pa.list_(pa.field("element", pa.string(), nullable=False)), "attributes in the reply; empty if it does not have the form of the template"
    ),
]
_COST = [
    _column("requests", pa.int32(), "requests with a reply; null if no server was asked", nullable=True),
    _column("prompt_tokens", pa.int32(), "of all of them, as the server counts", nullable=True),
    _column("completion_tokens", pa.int32(), "of all of them, as the server counts", nullable=True),
    _column("seconds", pa.float32(), "from request to reply, of all of them", nullable=True),
]
_MODEL = _column("model", pa.string(), "who answered")

CAPTIONS = pa.schema(
    [
        CONTENT_HASH,
        _MODEL,
        _column("request", pa.string(), "hash of what was asked: prompt, sampling, image size, redo counters"),
        _column("written_at", pa.string(), "UTC; if several rows have the same key, the first counts"),
        *_ANSWER,
        _column("status", pa.string(), "described, free or failed"),
        _column("reason", pa.string(), "why it failed", nullable=True),
        *_COST,
    ]
)
"""A log of final answers, so that each is paid only once. Its key is content_hash, model and request."""

REPRESENTATIVE_CAPTIONS = pa.schema(
    [
        PROTOTYPE,
        BAND,
        IMAGE_ID,
        CONTENT_HASH,
        *_ANSWER,
        _column("status", pa.string(), "described, free, failed, or missing: its image could not be read"),
        _column("reason", pa.string(), "why it failed or is missing", nullable=True),
        _MODEL,
        *_COST,
    ]
)


def caption_embeddings_schema(dim: int) -> pa.Schema:
    """One row for each usable description (described or free)."""
    return pa.schema(
        [
            _column("caption", pa.int32(), "its number"),
            PROTOTYPE,
            BAND,
            _column("text", pa.string(), "the description"),
            _column("embedding", vector(dim), "unit embedding in the space shared with images"),
        ]
    )


def counterparts_schema(dim: int) -> pa.Schema:
    """One row for each image."""
    return pa.schema(
        [
            IMAGE_ID,
            _column("counterpart", vector(dim), "unit vector in place of a description of the image"),
        ]
    )


WORD = _column("word", pa.string(), "a noun, or a user's own word or sentence")


def vocabulary_schema(dim: int) -> pa.Schema:
    """One row for each word. The table belongs to the store, not to a corpus."""
    return pa.schema(
        [
            _column("noun", pa.int32(), "its number"),
            WORD,
            _column("embedding", vector(dim), "unit mean of its prompts' embeddings, in the space shared with images"),
        ]
    )


def selected_nouns_schema(dim: int) -> pa.Schema:
    """One row for each selected word."""
    return pa.schema(
        [
            _column("noun", pa.int32(), "its number in the vocabulary"),
            WORD,
            _column("semantic_centre", pa.int32(), "the part of the images that it represents"),
            _column("rank", pa.int32(), "0 is the best of its part"),
            _column("score", pa.float32(), "log of the softmax over all parts of its cosines with their centres"),
            _column("embedding", vector(dim), "as in the vocabulary"),
        ]
    )


CLUSTER_COUNTS = pa.schema(
    [
        _column("clusters", pa.int32(), "a number that was tried"),
        _column("purity", pa.float32(), "share of an image's neighbours that lie in its cluster, 0 for chance and 1 for all; mean over images"),
        _column("low", pa.float32(), "mean of a cluster's images; all but a tenth of the clusters have more"),
        _column("suggested", pa.bool_(), "whether it is the suggested number of clusters; false in all rows if there is none"),
    ]
)

COUNTERPART_MODEL = pa.schema(
    [
        _column("kind", pa.string(), "ridge, softmax, joint or own"),
        _column("text_weight", pa.float64(), "weight of the text half against the image half"),
        _column("held_out_cosine", pa.float64(), "ridge, softmax: mean cosine of descriptions with their images' counterparts without them", nullable=True),
        _column("mean", _floats(), "ridge, own: mean embedding of all images", nullable=True),
        _column("weights", _floats(), "ridge, own: the linear map, (dimensions of an image, of a description), row after row", nullable=True),
    ]
)

FEATURES = pa.schema(
    [
        _column("half", pa.string(), "image or text (text is also that of a second encoder); with several methods those of each, in order"),
        _column("mean", _floats(), "of each dimension"),
        _column("basis", _floats(), "principal axes, (dimensions, axes), row after row; null: the dimensions as they are", nullable=True),
        _column("scale", _floats(), "what each axis is divided by"),
    ]
)


def neighbors_schema(count: int, halves: int = 2) -> pa.Schema:
    """One row for each image; neighbours are row numbers in canonical order, the nearest first, without the image itself."""
    kind = pa.list_(pa.field("element", pa.int32(), nullable=False), count)
    by_text = _column("text_neighbors", kind, "by the text half, or by the second encoder, if there is one")
    return pa.schema([IMAGE_ID, _column("image_neighbors", kind, "by the image half"), by_text][: 1 + halves])


DUPLICATES = pa.schema(
    [
        _column("group", pa.int32(), "0 is the largest"),
        IMAGE_ID,
        URI,
        _column("cosine", pa.float32(), "of its embedding to that of the group's first, 1 for the same bytes"),
        _column("exact", pa.bool_(), "whether it has the same bytes as the first"),
        _column("keep", pa.bool_(), "whether it is the first, the one to keep: most pixels, then URI"),
    ]
)
"""One row for each image that has an exact or near copy, group by group, with the image to keep first."""

_ARRAYS = {
    "weights": "of its last linear map, (clusters, dimensions of the features or of its hidden layer), row after row",
    "bias": "(clusters,)",
}


def members_schema(arrays: Iterable[str] = ("weights", "bias")) -> pa.Schema:
    """One row for each member, with the arrays of its method; by default those of linear members."""
    return pa.schema(
        [
            _column("member", pa.int32(), "its number"),
            *(_column(name, _floats(), _ARRAYS.get(name, "an array of its network, row after row")) for name in arrays),
            _column("steps", pa.int32(), "steps until it stopped"),
            _column("changed", pa.float32(), "share of probed labels that changed over its last 10 steps"),
            _column("loss", pa.float32(), "loss of its last step"),
        ]
    )


ALIGNMENT = pa.schema(
    [
        _column("member", pa.int32(), "its number"),
        _column("permutation", pa.list_(pa.field("element", pa.int32(), nullable=False)), "the consensus cluster of each of its clusters"),
        _column("agreement", pa.float32(), "share of images on which it agrees with the consensus"),
        _column("overlap", _floats(), "of each consensus cluster with its own: images in both, over those in either"),
    ]
)


CHECKPOINT = pa.schema(
    [
        _column("name", pa.string(), "name of an array that training needs to continue"),
        _column("dtype", pa.string(), "of its numbers, as NumPy names them"),
        _column("shape", pa.list_(pa.field("element", pa.int64(), nullable=False)), "of the array"),
        _column("values", pa.binary(), "its bytes, row after row"),
    ]
)
"""One row for each array."""

TRANSITIONS = pa.schema(
    [
        _column("member", pa.int32(), "its number"),
        _column("class", pa.int32(), "of its instance classifier"),
        _column("next_class", pa.int32(), "another"),
        _column("count", pa.int32(), "how often an image changed from the first class to the second between two looks; pairs without changes have no row"),
    ]
)
INSTANCE_GROUPS = pa.schema(
    [
        _column("member", pa.int32(), "its number"),
        _column("class", pa.int32(), "the class of its instance classifier as which this image was learnt"),
        IMAGE_ID,
        _column("group", pa.int32(), "the member's cluster that the class became, which the member learnt as the label of this image"),
    ]
)
"""One row for each image in a member's labelled sample."""

ENHANCED_CLUSTERS = pa.schema(
    [
        _column("cluster", pa.int32(), "its number"),
        _column("before", pa.int64(), "images that the member gave it, before it was trained further"),
        _column("after", pa.int64(), "images that it gives it now"),
        _column("both", pa.int64(), "images of both"),
    ]
)


def cluster_centres_schema(dim: int) -> pa.Schema:
    """One row for each cluster."""
    return pa.schema(
        [
            _column("cluster", pa.int32(), "its number"),
            _column("centre", _floats(dim), "unit vector in the space of the embeddings: mean direction of its images"),
            _column("distance", pa.float32(), "1 - cosine of its images to it, mean"),
            _column("deviation", pa.float32(), "and standard deviation"),
        ]
    )


HEAD = pa.schema(
    [
        _column("cluster", pa.int32(), "0 is the largest cluster"),
        _column("weights", _floats(), "of the linear map that assigns images outside the run in place of the consensus, (dimensions of the features,)"),
        _column("bias", pa.float32(), "added to it"),
    ]
)

CLUSTER_NAMES = pa.schema(
    [
        _column("cluster", pa.int32(), "0 is the largest cluster"),
        _column("name", pa.string(), "unlike that of every other cluster"),
        _column("description", pa.string(), "one sentence; null where nothing is known", nullable=True),
        _column("terms", pa.list_(pa.field("element", pa.string(), nullable=False)), "what its descriptions say and others' do not, most distinctive first"),
        _column("described", pa.int32(), "descriptions of its own images; where it is 0, those that its images resemble name it"),
        _column("namer", pa.string(), "who named it: terms, or a language model"),
    ]
)

HIERARCHY = pa.schema(
    [
        _column("node", pa.int32(), "clusters, and the number of the row: clusters have the numbers below"),
        _column("left", pa.int32(), "the cluster or node that it is made of"),
        _column("right", pa.int32(), "and the other"),
        _column("height", pa.float32(), "mean distance of the clusters of both: 1 less the mean of their co-association and of the cosine of their centres"),
        _column("clusters", pa.int32(), "below it"),
        _column("size", pa.int64(), "images below it"),
        _column("name", pa.string(), "by the namer of the clusters; unlike that of every other node"),
    ]
)
"""An average-linkage tree, from the bottom up, with one row fewer than clusters."""

LAYOUT = pa.schema(
    [
        IMAGE_ID,
        URI,
        _column("cluster", pa.int32(), "0 is the largest cluster"),
        _column("role", pa.string(), "why it is shown: representative, most confident, least confident, sample, or new"),
        _column("x", pa.float32(), "on the map, where only distances mean something"),
        _column("y", pa.float32(), "on the map"),
    ]
)
"""The images that a report shows, at most 5,000."""

MAP = pa.schema(
    [
        IMAGE_ID,
        _column("x", pa.float32(), "from 0 to 1, on the map of `layout`, where only distances mean something"),
        _column("y", pa.float32(), "from 0 to 1"),
    ]
)
"""One row for each image."""

_ORIGIN = pa.struct([pa.field("cluster_key", pa.int32(), nullable=False), pa.field("share", pa.float32(), nullable=False)])

LINEAGE = pa.schema(
    [
        _column("cluster", pa.int32(), "0 is the largest cluster"),
        _column("cluster_key", pa.int32(), "what it is called from run to run: the key of the published cluster that it continues, or a new number"),
        _column("previous_cluster", pa.int32(), "the published cluster that it continues; null if it is new", nullable=True),
        _column("overlap", pa.float32(), "images in both over those in either, of the images that both runs have; null if it is new", nullable=True),
        _column("common", pa.int64(), "its images that the published run before had, with the same bytes"),
        _column("moved", pa.float32(), "share of those that were under another key; null without any", nullable=True),
        _column("origins", pa.list_(pa.field("element", _ORIGIN, nullable=False)), "the keys that those were under, with their shares of them, largest first"),
    ]
)

REFIT = pa.schema(
    [
        _column("decision", pa.string(), "kept, continued, renewed or from scratch"),
        _column("why", pa.string(), "in words"),
        _column("warning", pa.string(), "a warning for people", nullable=True),
        _column("model", pa.string(), "the run whose model is kept or continued", nullable=True),
        _column("clusters", pa.int32(), "number of clusters of the run, if not the requested one", nullable=True),
        _column("images", pa.int64(), "usable images"),
        _column("new", pa.int64(), "usable images that the model was not made from", nullable=True),
        _column("gone", pa.int64(), "images that the model was made from and that are gone", nullable=True),
        _column("fitted_images", pa.int64(), "images when all members were fitted"),
        _column("outliers", pa.float64(), "share of the new images that are 2 standard deviations or more from their cluster's centre", nullable=True),
        _column("confidence", pa.float64(), "mean posterior of the new images, by the model's head", nullable=True),
        _column("margin", pa.float64(), "mean difference to the second largest posterior", nullable=True),
        _column("outliers_before", pa.float64(), "the same for the images that the model was made from", nullable=True),
        _column("confidence_before", pa.float64(), "the same", nullable=True),
        _column("margin_before", pa.float64(), "the same", nullable=True),
        _column("scratch_moved", pa.float64(), "share of the images that the pipeline's last fit from scratch moved", nullable=True),
        _column("left_out", pa.list_(pa.field("element", pa.string(), nullable=False)), "stages that the run does not need"),
    ]
)

_OF_A_GROUP = pa.list_(pa.field("element", pa.binary(16), nullable=False))

EMERGING = pa.schema(
    [
        _column("group", pa.int32(), "0 is the largest"),
        _column("size", pa.int64(), "images"),
        _column("cohesion", pa.float32(), "mean cosine to their mean direction"),
        _column("cluster", pa.int32(), "the cluster in which the published model puts most of them, or their own new cluster"),
        _column("images", _OF_A_GROUP, "their ids, the most typical first"),
        _column("like", pa.list_(pa.field("element", pa.string(), nullable=False)), "descriptions of the nearest described images"),
    ]
)

REPORT = pa.schema(
    [
        _column("page", pa.string(), "file beside the table"),
        _column("size_bytes", pa.int64(), "bytes"),
        _column("digest", pa.binary(16), "xxh3-128 of the file's bytes"),
    ]
)


EMBEDDINGS_TABLE = "embeddings"
THUMBNAILS_TABLE = "thumbnails"
CLUSTER_COUNTS_TABLE = "cluster_counts"
BASELINE_CENTRES_TABLE = "baseline_centres"
BASELINE_TABLE = "baseline"
BASELINE_CLUSTERS_TABLE = "baseline_clusters"
PROTOTYPES_TABLE = "prototypes"
REPRESENTATIVES_TABLE = "representatives"
CAPTIONS_TABLE = "captions"
REPRESENTATIVE_CAPTIONS_TABLE = "representative_captions"
VOCABULARY_TABLE = "vocabulary"
SEMANTIC_CENTRES_TABLE = "semantic_centres"
SELECTED_NOUNS_TABLE = "selected_nouns"
CAPTION_EMBEDDINGS_TABLE = "caption_embeddings"
COUNTERPART_MODEL_TABLE = "counterpart_model"
COUNTERPARTS_TABLE = "counterparts"
FEATURES_TABLE = "features"
NEIGHBOR_INDEX_TABLE = "neighbor_index"
NEIGHBORS_TABLE = "neighbors"
DUPLICATES_TABLE = "duplicates"
CHECKPOINTS_TABLE = "checkpoints"
TRANSITIONS_TABLE = "transitions"
INSTANCE_GROUPS_TABLE = "instance_groups"
MEMBERS_TABLE = "members"
ALIGNMENT_TABLE = "alignment"
HEAD_TABLE = "head"
CLUSTER_CENTRES_TABLE = "cluster_centres"
ASSIGNMENTS_TABLE = "assignments"
CLUSTERS_TABLE = "clusters"
ENHANCER_TABLE = "enhancer"
ENHANCED_TABLE = "enhanced"
ENHANCED_CLUSTERS_TABLE = "enhanced_clusters"
ASSIGNED_TABLE = "assigned"
CLUSTER_NAMES_TABLE = "cluster_names"
LAYOUT_TABLE = "layout"
HIERARCHY_TABLE = "hierarchy"
MAP_TABLE = "map"
LINEAGE_TABLE = "lineage"
REFIT_TABLE = "refit"
EMERGING_TABLE = "emerging"
REPORT_TABLE = "report"


def schemas(dim: int = 1280, joint_dim: int | None = 384, neighbors: int = 20) -> dict[str, pa.Schema]:
    """Schema of every table by name, in the order in which they are made; the default lengths are those of encoder `lite`."""
    text = joint_dim or dim
    return {
        "images": IMAGES,
        EMBEDDINGS_TABLE: embeddings_schema(dim, joint_dim),
        THUMBNAILS_TABLE: THUMBNAILS,
        CLUSTER_COUNTS_TABLE: CLUSTER_COUNTS,
        REFIT_TABLE: REFIT,
        EMERGING_TABLE: EMERGING,
        BASELINE_CENTRES_TABLE: centres_schema(dim),
        BASELINE_TABLE: ASSIGNMENTS,
        BASELINE_CLUSTERS_TABLE: CLUSTERS,
        PROTOTYPES_TABLE: prototypes_schema(dim),
        REPRESENTATIVES_TABLE: REPRESENTATIVES,
        CAPTIONS_TABLE: CAPTIONS,
        REPRESENTATIVE_CAPTIONS_TABLE: REPRESENTATIVE_CAPTIONS,
        VOCABULARY_TABLE: vocabulary_schema(text),
        SEMANTIC_CENTRES_TABLE: centres_schema(text),
        SELECTED_NOUNS_TABLE: selected_nouns_schema(text),
        CAPTION_EMBEDDINGS_TABLE: caption_embeddings_schema(text),
        COUNTERPART_MODEL_TABLE: COUNTERPART_MODEL,
        COUNTERPARTS_TABLE: counterparts_schema(text),
        FEATURES_TABLE: FEATURES,
        NEIGHBOR_INDEX_TABLE: CHECKPOINT,
        NEIGHBORS_TABLE: neighbors_schema(neighbors),
        DUPLICATES_TABLE: DUPLICATES,
        CHECKPOINTS_TABLE: CHECKPOINT,
        TRANSITIONS_TABLE: TRANSITIONS,
        INSTANCE_GROUPS_TABLE: INSTANCE_GROUPS,
        MEMBERS_TABLE: members_schema(),
        ALIGNMENT_TABLE: ALIGNMENT,
        HEAD_TABLE: HEAD,
        CLUSTER_CENTRES_TABLE: cluster_centres_schema(dim),
        ASSIGNMENTS_TABLE: ASSIGNMENTS,
        CLUSTERS_TABLE: CLUSTERS,
        ENHANCER_TABLE: CHECKPOINT,
        ENHANCED_TABLE: ASSIGNMENTS,
        ENHANCED_CLUSTERS_TABLE: ENHANCED_CLUSTERS,
        CLUSTER_NAMES_TABLE: CLUSTER_NAMES,
        LAYOUT_TABLE: LAYOUT,
        HIERARCHY_TABLE: HIERARCHY,
        MAP_TABLE: MAP,
        LINEAGE_TABLE: LINEAGE,
        REPORT_TABLE: REPORT,
        ASSIGNED_TABLE: ASSIGNMENTS,
    }
