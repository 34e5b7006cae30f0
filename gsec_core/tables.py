"""The Arrow schema of every table, column by column.

Vectors are ``fixed_size_list<float16>``. Their length depends on the encoder, so that schemas with vectors are functions of it.
"""

from collections.abc import Iterable

import pyarrow as pa


def vector(length: int) -> pa.DataType:
    """A unit vector of ``length`` float16 values."""
    return _list(pa.float16(), length)


def _floats(length: int = -1) -> pa.DataType:
    return _list(pa.float32(), length)


def _list(of: pa.DataType, length: int = -1) -> pa.DataType:
    """Lists of values that are not null, of any length or of the given one."""
    return pa.list_(pa.field("element", of, nullable=False), length)


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
        _column("size_bytes", pa.int64(), "size of the file in bytes; -1 if the listing of the source does not give it"),
        _column("version", pa.string(), "text that changes when the file changes: its ETag, or its modification time and size"),
        _column("deleted", pa.bool_(), "true in a row that records that the image vanished from the source"),
    ]
)


def embeddings_schema(dim: int, joint_dim: int | None) -> pa.Schema:
    """One row for each image in the shard of the same name in `images`, except deleted ones."""
    joint = [_column("joint", vector(joint_dim), "unit embedding in the space shared with text; null unless status is ok", nullable=True)] if joint_dim else []
    return pa.schema(
        [
            IMAGE_ID,
            CONTENT_HASH.with_nullable(True),
            _column("embedding", vector(dim), "unit embedding; null unless status is ok", nullable=True),
            *joint,
            _column("width", pa.int32(), "width in pixels, as a viewer shows the image; null unless status is ok", nullable=True),
            _column("height", pa.int32(), "height in pixels, as a viewer shows the image; null unless status is ok", nullable=True),
            _column("status", pa.string(), "ok, rejected or missing"),
            _column("reason", pa.string(), "why the image is not ok; for an ok image, a harmless fault", nullable=True),
        ]
    )


THUMBNAILS = pa.schema([IMAGE_ID, _column("thumbnail", pa.binary(), "the thumbnail as JPEG; only ok images have a row")])

ASSIGNMENTS = pa.schema(
    [
        IMAGE_ID,
        URI,
        CONTENT_HASH,
        _column("cluster", pa.int32(), "number of the cluster; 0 is the largest, unless the run starts from a published model and keeps its numbers"),
        _column(
            "confidence",
            pa.float32(),
            "about the share of members that agree: mean posterior of the aligned members, smoothed, calibrated; with k-means, cosine to the cluster's centre",
        ),
        _column("margin", pa.float32(), "confidence minus the confidence of the second best cluster"),
        _column("agreement", pa.float32(), "share of members that give this cluster; null in `baseline` and `enhanced`", nullable=True),
        _column(
            "outlier",
            pa.float32(),
            "distance to the cluster's centre, in standard deviations above the mean of the cluster's images; null in `baseline` and `enhanced`",
            nullable=True,
        ),
        _column("is_duplicate", pa.bool_(), "whether another live image has the same bytes"),
    ]
)


def centres_schema(dim: int) -> pa.Schema:
    """One row for each cluster."""
    return pa.schema(
        [
            _column("cluster", pa.int32(), "number of the cluster, 0 is the largest; in `semantic_centres`, number of the part of the images"),
            _column("centre", _floats(dim), "unit vector in the space of the embeddings; in `semantic_centres`, in the space shared with text"),
        ]
    )


CLUSTER = _column("cluster", pa.int32(), "number of the cluster, as in the table of assignments")

CLUSTERS = pa.schema(
    [
        CLUSTER,
        _column("size", pa.int64(), "number of images"),
        _column("cohesion", pa.float32(), "mean cosine of its images to its centre; null without images", nullable=True),
        _column(
            "separation", pa.float32(), "1 - cosine between its centre and the nearest other centre; null without images, or without another", nullable=True
        ),
        _column("agreement", pa.float32(), "mean agreement of its images; null without images, and in `baseline_clusters`", nullable=True),
        _column(
            "stability",
            pa.float32(),
            "mean Jaccard overlap with the matching clusters of the members; below .5 the members do not agree on it; null without images, and in "
            "`baseline_clusters`",
            nullable=True,
        ),
    ]
)


def prototypes_schema(dim: int) -> pa.Schema:
    """One row for each micro-cluster."""
    return pa.schema(
        [
            _column("prototype", pa.int32(), "number of the micro-cluster; 0 is the largest"),
            _column("centre", _floats(dim), "unit vector in the space of the embeddings"),
            _column("size", pa.int64(), "number of images"),
        ]
    )


PROTOTYPE = _column("prototype", pa.int32(), "number of the image's micro-cluster")
BAND = _column("band", pa.int32(), "place of the image in the micro-cluster: 0 is the core, the highest number the rim")

REPRESENTATIVES = pa.schema([PROTOTYPE, BAND, IMAGE_ID, URI, CONTENT_HASH, _column("distance", pa.float32(), "1 - cosine to the centre of the micro-cluster")])

DESCRIBED, FREE, FAILED = "described", "free", "failed"
"""Status of a caption: follows the template and is parsed; free text outside the template; finally failed, such as refused or empty."""

_ANSWER = [
    _column("text", pa.string(), "the description; null if status is failed or missing", nullable=True),
    _column("object", pa.string(), "the main object, if the reply has the form of the template", nullable=True),
    _column("attributes", _list(pa.string()), "attributes in the reply; empty if it does not have the form of the template"),
]
_COST = [
    _column("requests", pa.int32(), "number of requests that got a reply; null if there was none", nullable=True),
    _column("prompt_tokens", pa.int32(), "tokens of these requests, as the server counts them", nullable=True),
    _column("completion_tokens", pa.int32(), "tokens of the replies, as the server counts them", nullable=True),
    _column("seconds", pa.float32(), "time from request to reply, summed over these requests", nullable=True),
]
_MODEL = _column("model", pa.string(), "name of the model that answered")

CAPTIONS = pa.schema(
    [
        CONTENT_HASH,
        _MODEL,
        _column("request", pa.string(), "hash of what was asked: prompt, sampling, image size, redo counters"),
        _column("written_at", pa.string(), "UTC; of several rows with the same content_hash, model and request, the earliest counts"),
        *_ANSWER,
        _column("status", pa.string(), "described, free or failed"),
        _column("reason", pa.string(), "why the answer failed", nullable=True),
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
        _column("status", pa.string(), "described, free, failed, or missing (the image could not be read)"),
        _column("reason", pa.string(), "why the description failed, or the image is missing", nullable=True),
        _MODEL,
        *_COST,
    ]
)


def caption_embeddings_schema(dim: int) -> pa.Schema:
    """One row for each usable description (described or free)."""
    return pa.schema(
        [
            _column("caption", pa.int32(), "number of the description"),
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
            _column("counterpart", vector(dim), "the text counterpart: a unit vector that takes the place of a description of the image"),
        ]
    )


WORD = _column("word", pa.string(), "a noun, or a user's own word or sentence")


def vocabulary_schema(dim: int) -> pa.Schema:
    """One row for each word. The table belongs to the store, not to a corpus."""
    return pa.schema(
        [
            _column("noun", pa.int32(), "number of the word"),
            WORD,
            _column("embedding", vector(dim), "mean of the word's embeddings over the prompts, as a unit vector in the space shared with images"),
        ]
    )


def selected_nouns_schema(dim: int) -> pa.Schema:
    """One row for each selected word."""
    return pa.schema(
        [
            _column("noun", pa.int32(), "number of the word in the vocabulary"),
            WORD,
            _column("semantic_centre", pa.int32(), "number of the part of the images that the word represents"),
            _column("rank", pa.int32(), "rank of the word in its part; 0 is the best"),
            _column("score", pa.float32(), "log of the softmax of the word's cosines with the centres of all parts, at its own part"),
            _column("embedding", vector(dim), "embedding of the word, as in the vocabulary"),
        ]
    )


CLUSTER_COUNTS = pa.schema(
    [
        _column("clusters", pa.int32(), "a number of clusters that was tried"),
        _column("purity", pa.float32(), "share of an image's neighbours in its own cluster, scaled so that 0 is chance and 1 is all; mean over images"),
        _column("low", pa.float32(), "the mean over a cluster's images that all but a tenth of the clusters reach"),
        _column("suggested", pa.bool_(), "whether it is the suggested number of clusters; false in all rows if there is none"),
    ]
)

COUNTERPART_MODEL = pa.schema(
    [
        _column("kind", pa.string(), "ridge, softmax, joint or own"),
        _column("text_weight", pa.float64(), "weight of the text half; the image half has the rest of 1"),
        _column("held_out_cosine", pa.float64(), "ridge, softmax: mean cosine between held-out descriptions and their predictions", nullable=True),
        _column("mean", _floats(), "ridge, own: mean embedding of all images", nullable=True),
        _column("weights", _floats(), "ridge, own: the linear map, (dimensions of images, dimensions of descriptions), row after row", nullable=True),
    ]
)

FEATURES = pa.schema(
    [
        _column("half", pa.string(), "image or text (text also for a second encoder); with several methods, the halves of one method after those of the other"),
        _column("mean", _floats(), "mean of each dimension, which is subtracted"),
        _column("basis", _floats(), "principal axes, (dimensions, axes), row after row; null if the dimensions are not rotated", nullable=True),
        _column("scale", _floats(), "divisor of each axis or dimension"),
    ]
)


def neighbors_schema(count: int, halves: int = 2) -> pa.Schema:
    """One row for each image; neighbours are row numbers in canonical order, the nearest first, without the image itself."""
    kind = _list(pa.int32(), count)
    by_text = _column("text_neighbors", kind, "the nearest images in the text half, or by the second encoder")
    return pa.schema(
        [IMAGE_ID, _column("image_neighbors", kind, "the nearest images in the image half: their row numbers, the nearest first"), by_text][: 1 + halves]
    )


DUPLICATES = pa.schema(
    [
        _column("group", pa.int32(), "number of the group; 0 is the largest"),
        IMAGE_ID,
        URI,
        _column("cosine", pa.float32(), "cosine between its embedding and that of the group's first image; 1 with the same bytes"),
        _column("exact", pa.bool_(), "whether it has the same bytes as the group's first image"),
        _column("keep", pa.bool_(), "whether it is the group's first image, the one to keep: the image with most pixels or, among equals, the first by URI"),
    ]
)
"""One row for each image that has an exact or near copy, group by group, with the image to keep first."""

MEMBER = _column("member", pa.int32(), "number of the member")

_ARRAYS = {
    "weights": "weights of the member's last linear map, (clusters, dimensions of the features or of the hidden layer), row after row",
    "bias": "bias of this map, (clusters,)",
}


def members_schema(arrays: Iterable[str] = ("weights", "bias")) -> pa.Schema:
    """One row for each member, with the arrays of its method; by default those of linear members."""
    return pa.schema(
        [
            MEMBER,
            *(_column(name, _floats(), _ARRAYS.get(name, "an array of the member's network, row after row")) for name in arrays),
            _column("steps", pa.int32(), "training steps until the member stopped"),
            _column("changed", pa.float32(), "share of a sample's labels that changed over the last 10 steps; 1 with fewer steps"),
            _column("loss", pa.float32(), "loss of the last step"),
        ]
    )


ALIGNMENT = pa.schema(
    [
        MEMBER,
        _column("permutation", _list(pa.int32()), "for each of the member's clusters, the number of the matching consensus cluster"),
        _column("agreement", pa.float32(), "share of images to which the member gives the same cluster as the consensus"),
        _column("overlap", _floats(), "for each consensus cluster, Jaccard overlap with the member's matching cluster: images in both, over images in either"),
    ]
)


CHECKPOINT = pa.schema(
    [
        _column("name", pa.string(), "name of an array that training needs to continue or, in `neighbor_index`, of a piece of the index"),
        _column("dtype", pa.string(), "NumPy's name of the type of the array's numbers"),
        _column("shape", _list(pa.int64()), "shape of the array"),
        _column("values", pa.binary(), "bytes of the array, row after row"),
    ]
)
"""One row for each array."""

TRANSITIONS = pa.schema(
    [
        MEMBER,
        _column("class", pa.int32(), "a class of the member's instance classifier"),
        _column("next_class", pa.int32(), "another class of this classifier"),
        _column("count", pa.int32(), "how often the predicted class of an image changed from `class` to `next_class`; pairs without changes have no row"),
    ]
)
INSTANCE_GROUPS = pa.schema(
    [
        MEMBER,
        _column("class", pa.int32(), "class of the member's instance classifier that was trained on this image"),
        IMAGE_ID,
        _column("group", pa.int32(), "the member's cluster that this class became part of; the member learnt it as the label of the image"),
    ]
)
"""One row for each image in a member's labelled sample."""

ENHANCED_CLUSTERS = pa.schema(
    [
        CLUSTER,
        _column("before", pa.int64(), "number of images that the consensus assigns to the cluster"),
        _column("after", pa.int64(), "number of images that the trained encoder and member assign to it"),
        _column("both", pa.int64(), "number of images that both assign to it"),
    ]
)


def cluster_centres_schema(dim: int) -> pa.Schema:
    """One row for each cluster."""
    return pa.schema(
        [
            CLUSTER,
            _column("centre", _floats(dim), "unit vector in the space of the embeddings: mean direction of the cluster's images"),
            _column("distance", pa.float32(), "mean distance (1 - cosine) of the cluster's images to the centre"),
            _column("deviation", pa.float32(), "standard deviation of this distance"),
        ]
    )


HEAD = pa.schema(
    [
        CLUSTER,
        _column("weights", _floats(), "weights of the head, a linear map that assigns images outside the run, (dimensions of the features,)"),
        _column("bias", pa.float32(), "bias of the head"),
    ]
)

CLUSTER_NAMES = pa.schema(
    [
        CLUSTER,
        _column("name", pa.string(), "name that no other cluster has"),
        _column("description", pa.string(), "one sentence; null if there is none", nullable=True),
        _column("terms", _list(pa.string()), "words or nouns that distinguish it from the other clusters, the most distinctive first"),
        _column("described", pa.int32(), "number of descriptions of its own images; if 0, the 3 descriptions nearest to its centre, if there are any, name it"),
        _column("namer", pa.string(), "what named it: terms, nouns, or the name of a language model"),
    ]
)

HIERARCHY = pa.schema(
    [
        _column("node", pa.int32(), "number of the node: the number of clusters plus the number of the row; smaller numbers are clusters"),
        _column("left", pa.int32(), "number of one cluster or node that is joined here"),
        _column("right", pa.int32(), "number of the other"),
        _column(
            "height",
            pa.float32(),
            "mean distance between the clusters of both: 1 - mean of their co-association and the cosine of their centres, seen from the mean of all images",
        ),
        _column("clusters", pa.int32(), "number of clusters below it"),
        _column("size", pa.int64(), "number of images below it"),
        _column("name", pa.string(), "name that no other node has, by the namer of the clusters"),
    ]
)
"""An average-linkage tree, from the bottom up, with one row fewer than clusters."""

LAYOUT = pa.schema(
    [
        IMAGE_ID,
        URI,
        CLUSTER,
        _column("role", pa.string(), "why it is shown: representative, most confident, least confident, sample, or new"),
        _column("x", pa.float32(), "place on the map, where only distances have a meaning"),
        _column("y", pa.float32(), "place on the map"),
    ]
)
"""The images that a report shows, at most 5,000."""

MAP = pa.schema(
    [
        IMAGE_ID,
        _column("x", pa.float32(), "place on the map of `layout`, from 0 to 1; only distances have a meaning"),
        _column("y", pa.float32(), "place on the map, from 0 to 1"),
    ]
)
"""One row for each image."""

_ORIGIN = pa.struct([pa.field("cluster_key", pa.int32(), nullable=False), pa.field("share", pa.float32(), nullable=False)])

LINEAGE = pa.schema(
    [
        CLUSTER,
        _column("cluster_key", pa.int32(), "key that stays the same from run to run: that of the published cluster that it continues, or a new number"),
        _column("previous_cluster", pa.int32(), "number of the published cluster that it continues; null if it is new", nullable=True),
        _column("overlap", pa.float32(), "Jaccard overlap with that cluster, over the images that both runs have; null if it is new", nullable=True),
        _column("common", pa.int64(), "number of its images that the run published before has too, with the same bytes"),
        _column("moved", pa.float32(), "share of these images that had another key there; null if there are none", nullable=True),
        _column("origins", _list(_ORIGIN), "keys that these images had there, each with its share of them, the largest first"),
    ]
)

REFIT = pa.schema(
    [
        _column("decision", pa.string(), "kept, continued, renewed or from scratch"),
        _column("why", pa.string(), "the reason, in words"),
        _column("warning", pa.string(), "a warning for people", nullable=True),
        _column("model", pa.string(), "run whose model is kept, continued or renewed; null from scratch", nullable=True),
        _column("clusters", pa.int32(), "number of clusters; null from scratch, where it is that of the settings", nullable=True),
        _column("images", pa.int64(), "number of usable images"),
        _column("new", pa.int64(), "number of usable images that the model was not fitted on", nullable=True),
        _column("gone", pa.int64(), "number of images that the model was fitted on and that are gone", nullable=True),
        _column("fitted_images", pa.int64(), "number of images when all members were last fitted"),
        _column("outliers", pa.float64(), "share of the new images whose outlier score is above 2", nullable=True),
        _column("confidence", pa.float64(), "mean of the largest posterior of the new images, by the model's head", nullable=True),
        _column("margin", pa.float64(), "mean difference between the largest and second largest posterior of the new images", nullable=True),
        _column("outliers_before", pa.float64(), "as outliers, for images that the model was fitted on", nullable=True),
        _column("confidence_before", pa.float64(), "as confidence, for images that the model was fitted on", nullable=True),
        _column("margin_before", pa.float64(), "as margin, for images that the model was fitted on", nullable=True),
        _column("scratch_moved", pa.float64(), "share of the images that the pipeline's last fit from scratch moved to another cluster", nullable=True),
        _column("left_out", _list(pa.string()), "stages that the run leaves out because the model is kept"),
    ]
)

EMERGING = pa.schema(
    [
        _column("group", pa.int32(), "number of the group; 0 is the largest"),
        _column("size", pa.int64(), "number of images"),
        _column("cohesion", pa.float32(), "mean cosine of the images to their mean direction"),
        _column("cluster", pa.int32(), "cluster to which the published model assigns most of the images, or the new cluster that they become"),
        _column("images", _list(pa.binary(16)), "ids of the images, the most typical first"),
        _column("like", _list(pa.string()), "descriptions of the described images that are nearest to the group"),
    ]
)

REPORT = pa.schema(
    [
        _column("page", pa.string(), "name of a file beside the table"),
        _column("size_bytes", pa.int64(), "size of the file in bytes"),
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
