"""All settings, with one frozen model per stage.

A field changes the output unless it is marked ``RUNTIME``. Fields that are not marked enter the fingerprints of the tables, so that a
changed setting makes new tables, and a new field without a mark can never give two different outputs the same name. The settings of a
method are in a section with its name. `gsec_core.settings` loads the values.
"""

import json
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from gsec_core import methods
from gsec_core.errors import Refused, without_secrets
from gsec_core.section import RUNTIME, Section, is_runtime
from gsec_core.sources.address import normalise_url
from gsec_core.sources.listing import EXCLUDED
from gsec_core.text import ENCODER

AUTO = "auto"
"""Value of settings that are to be found automatically: the number of clusters, or the Ray cluster of this machine."""


class IngestConfig(Section):
    """How the source is listed."""

    image_column: str = Field("image", description="Parquet sources: the column with the image bytes (binary, or a struct with a field `bytes`).")
    exclude: Annotated[str, RUNTIME] = Field(
        EXCLUDED, description="What to leave out and count: globs, separated by commas, each for a whole path or for the name of a file or folder."
    )
    follow_links: Annotated[bool, RUNTIME] = Field(
        False, description="Follow links to folders on this machine, wherever they lead, each folder once. Not for deployed flows."
    )
    shard_rows: Annotated[int, RUNTIME] = Field(2048, ge=1, le=65536, description="Images in a shard, the unit of commit and resume in encoding.")
    max_shrink: Annotated[float, RUNTIME] = Field(0.2, ge=0, le=1, description="Share of the live images that may vanish; if more do, ingest stops.")


class EncodeConfig(Section):
    """How images become embeddings."""

    encoder: str = Field("lite", description="`lite`, or `open_clip:MODEL:PRETRAINED`; PRETRAINED is a tag or the path of a local checkpoint.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass. bf16 is faster if the processor supports it.")
    batch_size: int = Field(64, ge=1, le=4096, description="Images in a forward pass; the last batch is padded.")
    thumbnail_size: int = Field(96, ge=16, le=96, description="Longest side of the stored thumbnails, in pixels.")
    device: Annotated[str, RUNTIME] = Field("auto", description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`.")
    workers: Annotated[int, RUNTIME] = Field(0, ge=0, le=256, description="Threads that read and decode. 0: one for each core. Use more for a remote source.")
    accept_loss: Annotated[bool, RUNTIME] = Field(False, description="Continue if a damaged shard cannot be restored completely because images are gone.")


class BaselineConfig(Section):
    """Spherical k-means on the image embeddings."""

    n_init: int = Field(10, ge=1, le=100, description="Starts; the best by the k-means objective is kept.")
    max_iter: int = Field(50, ge=1, le=1000, description="Iterations of a start.")
    random_state: int = Field(0, ge=0, lt=2**31, description="Seed of the starts.")


class PrototypesConfig(Section):
    """Micro-clusters of the image embeddings, and the images that represent them."""

    count: int | None = Field(
        None, ge=1, le=100_000, description="Number of micro-clusters. Default: max(3 x clusters, min(images / 60, 4096)), at most one for each image."
    )
    representatives: int = Field(5, ge=0, le=50, description="Images to describe in each micro-cluster, spread from its core to its rim. 0: all.")
    max_iter: int = Field(20, ge=1, le=1000, description="Iterations of k-means.")
    random_state: int = Field(0, ge=0, lt=2**31, description="Seed of k-means.")


class DescribeConfig(Section):
    """What describes the representatives, and how it is asked."""

    captioner: str = Field("tagger", description="`tagger`, `openai:MODEL` (of a server with OpenAI's API, such as vLLM), or `table:FILE:COLUMN`.")
    criterion: str | None = Field(
        None,
        description="openai: the one aspect to describe, such as `the kind of place`. Default: the main object. Each criterion is a clustering of its own.",
    )
    template: str | None = Field(None, description="openai: a TOML file with your own `prompt` and `pattern` instead of GSEC's sentence; see docs/describe.md.")
    image_size: int = Field(448, ge=32, le=4096, description="openai: longest side of the image that is sent, in pixels. Images are never enlarged.")
    max_tokens: int = Field(96, ge=16, le=4096, description="openai: largest length of an answer, in tokens.")
    url: Annotated[str, RUNTIME] = Field(
        "http://localhost:8000/v1",
        description="openai: the server, or several, separated by commas, which share the work. If they need a key, set GSEC_CAPTIONER_KEY.",
    )
    concurrency: Annotated[int, RUNTIME] = Field(64, ge=1, le=1024, description="openai: requests at the same time, for each server.")
    timeout: Annotated[float, RUNTIME] = Field(120, gt=0, le=3600, description="openai: seconds until a request counts as lost.")
    patience: Annotated[float, RUNTIME] = Field(
        300, ge=0, le=86_400, description="openai: seconds to wait for a server that is lost or busy before the stage ends."
    )
    commit_rows: Annotated[int, RUNTIME] = Field(64, ge=1, le=65536, description="Answers in one commit of the captions log.")
    commit_seconds: Annotated[float, RUNTIME] = Field(30, gt=0, le=3600, description="Seconds after which answers are committed, even if there are few.")
    min_coverage: Annotated[float, RUNTIME] = Field(
        0.5, ge=0, le=1, description="Share of the micro-clusters in which at least one image must have a description."
    )
    accept_loss: Annotated[bool, RUNTIME] = Field(False, description="Continue if a part of the captions log is damaged, and ask again for its answers.")


class FuseConfig(Section):
    """How descriptions of a few images become a text counterpart of every image."""

    counterpart: Literal["auto", "ridge", "softmax", "joint", "own"] = Field(
        "auto",
        description="`ridge`: a linear map from images to descriptions; `softmax`: the mean description, weighted by similarity in the joint space, as "
        "published; `joint`: the image in the joint space, without descriptions; `own`: the image's own description, `ridge` if it has none. `auto`: "
        "`joint` with `tagger`, `own` if all images are described, otherwise whichever predicts held-out descriptions better.",
    )
    text_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the text half against the image half. Default: .5 with `own`, .15 with `joint` or `tagger`, otherwise .15 to .5, more "
        "if held-out descriptions are predicted better.",
    )
    tau: float = Field(0.005, gt=0, le=10, description="softmax: temperature over the descriptions.")
    max_lost_weight: float = Field(
        1e-4, ge=0, lt=1, description="softmax: bound on the summed weight of the descriptions that are left out. 0: none is left out."
    )


class TextConfig(Section):
    """Where the images' counterparts come from: text, or a second encoder instead."""

    source: Literal["captions", "nouns", "encoder", "none"] | None = Field(
        None,
        description="`captions`: descriptions of a few images; `nouns`: the words of a vocabulary that tell the images apart; `encoder`: no text, but "
        "the embeddings of a second encoder; `none`. Default: the method's own.",
    )
    encoder: str | None = Field(None, description="encoder: the second encoder, with the same values as encode.encoder, and its precision and batches.")
    vocabulary: str = Field(
        "wordnet",
        description="nouns: `wordnet` (117,798 nouns of WordNet 3.0), `imagenet` (the names of its classes), or `file:PATH`, with a word or a "
        "sentence on each line.",
    )
    prompts: str | None = Field(
        None,
        min_length=1,
        description="nouns: the prompt for a word, such as `a photo of a {}`; several, separated by `|`, are averaged. Default: seven of CLIP's; with "
        "`lite` `a photo of a {}`.",
    )


class NounsConfig(Section):
    """Which words of the vocabulary represent the images, and how."""

    images_per_centre: int | None = Field(
        None, ge=1, le=1_000_000, description="Images in each part for which words are kept. Default: the method's, mostly 300."
    )
    per_centre: int | None = Field(None, ge=1, le=1000, description="Words that are kept for each part. Default: the method's, mostly 5.")
    tau: float | None = Field(None, gt=0, le=10, description="Temperature of the softmax over the kept words. Default: the method's, mostly 0.005.")
    weight: float = Field(0.3, ge=0, le=1, description="Weight of the text half against the image half, for a method that weighs them.")
    random_state: int = Field(0, ge=0, lt=2**31, description="Seed of the parts.")


class DuplicatesConfig(Section):
    """Which images count as copies of another."""

    threshold: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto",
        description="Smallest cosine of two images that are copies; 3 times as far from 1 if their small pictures are the same. `auto`: the encoder's.",
    )


class TrainConfig(Section):
    """The members of the ensemble. The settings of each method are in a section with its name."""

    n_members: int | None = Field(None, ge=1, le=1000, description="Number of members. Default: the method's.")
    random_state: int = Field(0, ge=0, lt=2**31, description="Seed of starts and mini-batches.")
    refit: Literal["auto", "always", "never"] = Field(
        "auto",
        description="What happens to the published model when images change. `auto`: it is kept while the new images fit, and continued or renewed if "
        "they do not; `never`: it is kept; `always`: every run fits from scratch.",
    )
    grow: bool = Field(False, description="Make a new cluster of new images that lie together where no old ones are. On with `clusters = auto`.")
    device: Annotated[str, RUNTIME] = Field("auto", description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`.")


class PublishConfig(Section):
    """How clusters get their names, and when a run is published."""

    namer: str | None = Field(
        None,
        description="What names clusters. `terms`: words of the descriptions; `nouns`: the nouns that represent the images; `openai:MODEL`: a language "
        "model at describe.url. Default: `nouns` if they are the text source, otherwise `terms`.",
    )
    max_moved: Annotated[float, RUNTIME] = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of the images in common with the published clustering that may move to other clusters. A run that moves more warns, and is "
        "published only if its settings changed.",
    )


class RayConfig(Section):
    """The Ray cluster, with engine = ray."""

    address: Annotated[str | None, RUNTIME] = Field(
        None,
        description="`auto` or HOST:PORT of a cluster in which this machine is a node, or `ray://HEAD:10001`. Default: a cluster on this machine only.",
    )
    cpus: Annotated[int, RUNTIME] = Field(
        0,
        ge=0,
        le=1024,
        description="Cores for each slice, and its threads if `threads` is 0. 0: as many as the smallest node has, so each node has one slice.",
    )
    gpus: Annotated[float, RUNTIME] = Field(0, ge=0, le=64, description="GPUs for each slice of a stage that computes on one. With .5 two slices share one.")
    memory: Annotated[float, RUNTIME] = Field(0, ge=0, le=65_536, description="GiB of memory that a node must have free for a slice. 0: memory is not checked.")

    def check(self) -> None:
        """Raises Refused if the address is malformed."""
        if self.address not in (None, AUTO) and not re.fullmatch(r"(ray://)?[^\s/@]+:\d+", self.address):
            raise Refused(f"ray.address = {json.dumps(without_secrets(self.address))}: give `auto`, HOST:PORT or ray://HOST:PORT, or leave it out.")


class _PipelineConfig(Section):
    """One run: where images come from, where tables go, how many clusters, and each stage's settings."""

    source: Annotated[str | None, AfterValidator(lambda url: url and normalise_url(url)), RUNTIME] = Field(
        None, description="A folder, a Parquet file or glob, or WebDataset tars; local or remote. Credentials are stripped."
    )
    store: Annotated[str, RUNTIME] = Field("gsec-store", min_length=1, description="Where all tables are kept: a folder or any fsspec URL (s3://, gs://).")
    corpus: Annotated[str | None, RUNTIME] = Field(None, description="The corpus's name in the store. Default: made from the source.")
    pipeline: Annotated[str | None, RUNTIME] = Field(
        None, description="The name under which a run is published if it passes its checks, and whose cluster keys it continues. Default: the corpus's name."
    )
    clusters: Literal["auto"] | Annotated[int, Field(ge=2, le=100_000)] = Field(
        10, description="Number of clusters. `auto`: the number that the images show; the run is refused, with the reason, if they show none."
    )
    method: str = Field(methods.DEFAULT, description="What trains the members: one of `gsec methods`, or several, separated by commas, with one consensus.")
    max_rejects: Annotated[float, RUNTIME] = Field(0.01, ge=0, le=1, description="Share of rejected images above which a run ends with exit code 3.")
    threads: Annotated[int, RUNTIME] = Field(
        0, ge=0, le=1024, description="Threads of numeric stages. 0: as many as the cores that affinity and CPU quota leave. Equal counts give equal labels."
    )
    scratch: Annotated[str | None, RUNTIME] = Field(None, description="Folder for temporary files that training reads. Default: the system's own.")
    engine: Annotated[Literal["threads", "ray"], RUNTIME] = Field(
        "threads", description="What works on slices of shards: `threads` of this process, or the nodes of a `ray` cluster."
    )
    max_workers: Annotated[int, RUNTIME] = Field(1, ge=1, le=64, description="threads: slices at the same time. On Ray there are as many as fit.")
    max_slices: Annotated[int, RUNTIME] = Field(
        200, ge=1, le=1000, description="Largest number of slices for a stage's missing shards. Each slice is a task, with its own bar on the dashboard."
    )
    hang_timeout: Annotated[float, RUNTIME] = Field(
        3600, gt=0, le=604_800, description="Seconds without progress after which a stage counts as hung and is ended; describe.patience is added."
    )
    ingest: IngestConfig = IngestConfig()
    encode: EncodeConfig = EncodeConfig()
    baseline: BaselineConfig = BaselineConfig()
    prototypes: PrototypesConfig = PrototypesConfig()
    describe: DescribeConfig = DescribeConfig()
    text: TextConfig = TextConfig()
    nouns: NounsConfig = NounsConfig()
    fuse: FuseConfig = FuseConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    train: TrainConfig = TrainConfig()
    publish: PublishConfig = PublishConfig()
    ray: RayConfig = RayConfig()

    @property
    def n_clusters(self) -> int:
        """The number of clusters. Raises Refused if it is still to be found."""
        if isinstance(self.clusters, str):
            raise Refused("clusters = auto: this needs a number. gsec run with --clusters auto finds one; then give it here.")
        return self.clusters

    @property
    def of_method(self) -> Section:
        """The section of the method's settings. Raises Refused if there is no such method."""
        return methods.find(self.method).section(self)

    @property
    def text_source(self) -> str:
        """The text source: as set, or the default of the method. Raises Refused if the method cannot use it, or if `text.encoder` does not fit it."""
        method = methods.find(self.method)
        source = self.text.source or method.texts[0]
        if source not in method.texts:
            there = " or ".join(f"`{text}`" for text in method.texts)
            raise Refused(f"text.source = {source}: method {method.name} cannot use it; give {there}, or leave it out.")
        if source == ENCODER and self.text.encoder is None:
            raise Refused("text.source = encoder: say which is the second, with text.encoder; it takes what encode.encoder takes.")
        if source != ENCODER and self.text.encoder is not None:
            raise Refused(f"text.encoder = {self.text.encoder}: only with text.source = encoder is there a second, and it is {source}. Set both or neither.")
        return source

    @property
    def second_encoder(self) -> str | None:
        """Name of the second encoder, or None. Raises as `text_source` does."""
        return self.text.encoder if self.text_source == ENCODER else None


if TYPE_CHECKING:

    class PipelineConfig(_PipelineConfig):
        """See `_PipelineConfig`; has in addition a section for each method, under the method's name."""

else:
    # Methods of other packages have sections like all others: in files, in the environment, and in the forms of a dashboard.
    _OF_METHODS = {name: (method.Settings, method.Settings()) for name, method in methods.loaded().items()}
    PipelineConfig = create_model("PipelineConfig", __base__=_PipelineConfig, __module__=__name__, __doc__=_PipelineConfig.__doc__, **_OF_METHODS)


_MOVED = {"preset": "gsec", "ensemble_size": "gsec", "max_steps": "gsec", "tol": "gsec"}
"""Settings that earlier versions recorded at the top level or under `train`, with their present sections."""


def recorded(values: Mapping[str, Any]) -> PipelineConfig:
    """Read the settings that a run recorded, including runs from before methods had sections.

    Settings of methods that are no longer installed are left out: the method cannot be used then, but the run's results can still be viewed.
    """
    now = {name: value for name, value in values.items() if name not in _MOVED}
    train = dict(now.get("train", {}))
    old = {name: values[name] for name in _MOVED if name in values} | {name: train.pop(name) for name in _MOVED if name in train}
    now["train"] = train
    for name, value in old.items():
        now[_MOVED[name]] = {**now.get(_MOVED[name], {}), name: value}
    return PipelineConfig.model_validate({name: value for name, value in now.items() if name in PipelineConfig.model_fields})


def accepts(field: FieldInfo) -> list[tuple[object, dict[str, float]]]:
    """The values that a setting accepts, apart from None: types with their bounds (ge, gt, le, lt), or single values."""
    found: list[tuple[object, dict[str, float]]] = []
    is_union = get_origin(field.annotation) in (Union, UnionType)
    for kind in get_args(field.annotation) if is_union else [field.annotation]:
        metadata = field.metadata
        if get_origin(kind) is Annotated:
            kind, bounded = get_args(kind)
            metadata = bounded.metadata
        if get_origin(kind) is Literal:
            found += [(value, {}) for value in get_args(kind)]
        elif kind is not NoneType:
            found.append((kind, {name: getattr(bound, name) for bound in metadata for name in ("ge", "gt", "le", "lt") if hasattr(bound, name)}))
    return found


def with_runtime(recorded: PipelineConfig, now: PipelineConfig) -> PipelineConfig:
    """The recorded settings, except that `RUNTIME` fields such as devices, threads and limits are those of ``now``; source, store and names stay recorded."""
    kept = recorded.model_dump(include={"source", "store", "corpus", "pipeline"})
    return PipelineConfig.model_validate({**_runtime_over(recorded, now), **kept})


def _runtime_over(recorded: BaseModel, now: BaseModel) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in type(recorded).model_fields.items():
        old, new = getattr(recorded, name), getattr(now, name)
        values[name] = _runtime_over(old, new) if isinstance(old, BaseModel) else new if is_runtime(field) else old
    return values
