"""All settings, with one frozen model per stage.

A field changes the output unless it is marked ``RUNTIME``. Fields that are not marked enter the fingerprints of the tables, so that a
changed setting makes new tables, and a new field without a mark can never give two different outputs the same name. The settings of a
method are in a section with its name. `gsec_core.settings` loads the values.
"""

import json
import re
from collections.abc import Mapping
from os.path import expanduser
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


_AT_HOME = AfterValidator(lambda value: value and re.sub(r"(^|(?<=:))~[^/:]*(?=/)", lambda home: expanduser(home[0]), value))
"""Expands ~ at the beginning of a path, also after KIND: as in `table:~/captions.csv`, where shells leave it as it is."""


class IngestConfig(Section):
    """How the source is listed."""

    image_column: str = Field("image", description="Parquet sources: the column with the image bytes (binary, or a struct with a field `bytes`).")
    exclude: Annotated[str, RUNTIME] = Field(
        EXCLUDED,
        description="Files and folders to leave out: globs, separated by commas. A glob matches a path relative to the source, or the name of a file or "
        "folder. What is left out is counted.",
    )
    follow_links: Annotated[bool, RUNTIME] = Field(
        False, description="Local folders: follow links to folders, even out of the source. Each folder is listed once. Deployed flows refuse it."
    )
    shard_rows: Annotated[int, RUNTIME] = Field(2048, ge=1, le=65536, description="Images in a shard. Encoding commits and resumes shard by shard.")
    max_shrink: Annotated[float, RUNTIME] = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest share of the images that may vanish from the source between two ingests, or be unreadable. If more vanish, ingest stops. "
        "If more are unreadable, the run is not published automatically.",
    )


class EncodeConfig(Section):
    """How images become embeddings."""

    encoder: Annotated[str, _AT_HOME] = Field(
        "lite", description="`lite`, or `open_clip:MODEL:PRETRAINED`; PRETRAINED is a tag or the path of a local checkpoint."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Number format of the forward pass. `bf16` is faster if the hardware supports it.")
    batch_size: int = Field(64, ge=1, le=4096, description="Images in a forward pass; the last batch is padded.")
    thumbnail_size: int = Field(96, ge=16, le=96, description="Longest side of the stored thumbnails, in pixels.")
    device: Annotated[str, RUNTIME] = Field("auto", description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`.")
    workers: Annotated[int, RUNTIME] = Field(
        0, ge=0, le=256, description="Threads that read and decode images. 0: one for each core. Use more for a remote source."
    )
    accept_loss: Annotated[bool, RUNTIME] = Field(
        False, description="Continue even if images of a damaged shard are gone, so that it cannot be made again completely."
    )


class BaselineConfig(Section):
    """Spherical k-means on the image embeddings."""

    n_init: int = Field(10, ge=1, le=100, description="Number of k-means starts. The start with the best objective is kept.")
    max_iter: int = Field(50, ge=1, le=1000, description="Iterations of each start.")
    random_state: int = Field(0, ge=0, lt=2**31, description="Seed of the starts.")


class PrototypesConfig(Section):
    """Micro-clusters of the image embeddings, and the images that represent them."""

    count: int | None = Field(
        None, ge=1, le=100_000, description="Number of micro-clusters. Default: max(3 x clusters, min(images / 60, 4096)), at most one for each image."
    )
    representatives: int = Field(5, ge=0, le=50, description="Number of images to describe in each micro-cluster, chosen from its core to its rim. 0: all.")
    max_iter: int = Field(20, ge=1, le=1000, description="Iterations of k-means.")
    random_state: int = Field(0, ge=0, lt=2**31, description="Seed of k-means.")


class DescribeConfig(Section):
    """The captioner that describes the representatives, and the requests to it."""

    captioner: Annotated[str, _AT_HOME] = Field(
        "tagger",
        description="What describes images: `tagger` (built in), `openai:MODEL` (on an OpenAI-compatible server, such as vLLM), or `table:FILE:COLUMN` (your "
        "own descriptions).",
    )
    criterion: str | None = Field(
        None,
        description="With `openai`: the one aspect to describe, such as `the kind of place`. Default: the main object. Each criterion leads to a clustering "
        "of its own.",
    )
    template: Annotated[str | None, _AT_HOME] = Field(
        None, description="With `openai`: a TOML file with your own `prompt` and `pattern`, in place of GSEC's sentence; see docs/describe.md."
    )
    image_size: int = Field(
        448, ge=32, le=4096, description="With `openai`: longest side of the image that is sent, in pixels. Smaller images are not enlarged."
    )
    max_tokens: int = Field(96, ge=16, le=4096, description="With `openai`: largest length of an answer, in tokens.")
    url: Annotated[str, RUNTIME] = Field(
        "http://localhost:8000/v1",
        description="With `openai`: URL of the server, or of several servers, separated by commas, which share the work. If they need a key, set the "
        "environment variable GSEC_CAPTIONER_KEY.",
    )
    concurrency: Annotated[int, RUNTIME] = Field(64, ge=1, le=1024, description="With `openai`: largest number of requests at the same time to each server.")
    timeout: Annotated[float, RUNTIME] = Field(120, gt=0, le=3600, description="With `openai`: seconds without an answer after which a request counts as lost.")
    patience: Annotated[float, RUNTIME] = Field(
        300, ge=0, le=86_400, description="With `openai`: seconds to wait for a server that does not answer or is busy. Then the stage ends with an error."
    )
    commit_rows: Annotated[int, RUNTIME] = Field(64, ge=1, le=65536, description="Number of answers that are committed to the captions log together.")
    commit_seconds: Annotated[float, RUNTIME] = Field(
        30, gt=0, le=3600, description="Seconds after which answers are committed even if they are fewer than describe.commit_rows."
    )
    min_coverage: Annotated[float, RUNTIME] = Field(
        0.5,
        ge=0,
        le=1,
        description="Smallest share of the micro-clusters in which at least one image must have a description. With fewer, the stage ends with an error.",
    )
    accept_loss: Annotated[bool, RUNTIME] = Field(False, description="Continue even if a part of the captions log is damaged, and ask again for its answers.")


class FuseConfig(Section):
    """How a text counterpart of every image is made from the descriptions of a few images."""

    counterpart: Literal["auto", "ridge", "softmax", "joint", "own"] = Field(
        "auto",
        description="How the text counterpart of an image is made. `ridge`: a description predicted from its embedding by ridge regression. `softmax`: the mean"
        " of all descriptions, weighted by similarity to the image in the space shared with text, as in the paper. `joint`: the image's own "
        "embedding in that space, without descriptions. `own`: the image's own description, or as `ridge` if it has none. `auto`: `softmax` with "
        "the preset `published`; otherwise `joint` with `tagger`; otherwise `own` if all images are described; otherwise `ridge` or `softmax`, "
        "whichever predicts held-out descriptions better.",
    )
    text_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the text half, in a method that weights the halves; the image half has the rest of 1. Default: .15 with `joint` or `tagger`; "
        ".5 with `own`; otherwise .15 to .5, depending on how well held-out descriptions are predicted.",
    )
    tau: float = Field(0.005, gt=0, le=10, description="With `softmax`: temperature of the softmax that weights the descriptions.")
    max_lost_weight: float = Field(
        1e-4, ge=0, lt=1, description="With `softmax`: largest total weight of the descriptions that are left out of a mean, for speed. 0: none is left out."
    )


class TextConfig(Section):
    """Where the text counterparts of images come from: descriptions, nouns, or a second encoder in place of text."""

    source: Literal["captions", "nouns", "encoder", "none"] | None = Field(
        None,
        description="`captions`: descriptions of a few images; `nouns`: the words of a vocabulary that tell the images apart; `encoder`: no text, but "
        "the embeddings of a second encoder; `none`: neither. Default: the first source that `gsec methods` lists for the method.",
    )
    encoder: Annotated[str | None, _AT_HOME] = Field(
        None, description="With `encoder`: the second encoder. Takes the same values as encode.encoder, and uses the other settings of section encode too."
    )
    vocabulary: Annotated[str, _AT_HOME] = Field(
        "wordnet",
        description="With `nouns`: `wordnet` (117,798 nouns of WordNet 3.0), `imagenet` (the names of ImageNet's classes), or `file:PATH`, a file with a word "
        "or a sentence on each line.",
    )
    prompts: str | None = Field(
        None,
        min_length=1,
        description="With `nouns`: the prompt into which each word is put, such as `a photo of a {}`. Several prompts are separated by `|`, and their "
        "embeddings averaged. Default: seven prompts of CLIP; with `lite`, `a photo of a {}`.",
    )


class NounsConfig(Section):
    """Which words of the vocabulary are kept, and how text counterparts are made from them. For this, images are divided into parts by k-means."""

    images_per_centre: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Mean number of images in a part. Default: the method's: mostly 300; with `sic` and `seic` as many parts as clusters.",
    )
    per_centre: int | None = Field(
        None, ge=1, le=1000, description="Number of words that are kept for each part. Default: the method's: mostly 5; 200 with `seic`, 300 or 500 with `sic`."
    )
    tau: float | None = Field(
        None, gt=0, le=10, description="Temperature of the softmax that weights the kept words in a text counterpart. Default: the method's, mostly 0.005."
    )
    weight: float = Field(0.3, ge=0, le=1, description="Weight of the text half, in a method that weights the halves; the image half has the rest of 1.")
    random_state: int = Field(0, ge=0, lt=2**31, description="Seed of the k-means that makes the parts.")


class DuplicatesConfig(Section):
    """Which images count as copies of each other."""

    threshold: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto",
        description="Two images are copies if the cosine of their embeddings is at least this, or up to 3 times as far from 1 if their thumbnails are almost "
        "the same. `auto`: .87 with `lite`, .95 with other encoders.",
    )


class TrainConfig(Section):
    """Settings of the ensemble's members that all methods share. Each method has further settings in the section with its name."""

    n_members: int | None = Field(None, ge=1, le=1000, description="Number of members. Default: the method's.")
    random_state: int = Field(0, ge=0, lt=2**31, description="Seed of the members' starts and mini-batches.")
    refit: Literal["auto", "always", "never"] = Field(
        "auto",
        description="What happens to the published model when images come, go or change. `auto`: it is kept while it fits the images; otherwise it is "
        "continued (its members are trained further) or renewed (new members are fitted). `never`: it is kept. `always`: every run fits from scratch. A run "
        "with other settings or another encoder always fits from scratch.",
    )
    grow: bool = Field(
        False,
        description="Make a new cluster of each group of new images where there are no old images. Needs `train.refit = auto`. On with `clusters = auto`.",
    )
    device: Annotated[str, RUNTIME] = Field("auto", description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`.")


class PublishConfig(Section):
    """How clusters get their names, and when a run is published."""

    namer: str | None = Field(
        None,
        description="What names clusters. `terms`: words of the descriptions; `nouns`: the nouns that represent the images; `openai:MODEL`: a language "
        "model on the server at describe.url. Default: `nouns` with `text.source = nouns`, otherwise `terms`.",
    )
    max_moved: Annotated[float, RUNTIME] = Field(
        0.25,
        ge=0,
        le=1,
        description="Largest share of the images in common with the published clustering that may move to other clusters. If more move, the run warns, and "
        "is published automatically only if its settings differ from those of the published run.",
    )


class RayConfig(Section):
    """The Ray cluster that `engine = ray` uses."""

    address: Annotated[str | None, RUNTIME] = Field(
        None,
        description="`auto` or HOST:PORT for a cluster of which this machine is a node; `ray://HEAD:10001` for any other. Default: a new cluster on this "
        "machine only.",
    )
    cpus: Annotated[int, RUNTIME] = Field(
        0,
        ge=0,
        le=1024,
        description="Cores that each slice reserves; if `threads` is 0, also its number of threads. 0: as many cores as the smallest node has.",
    )
    gpus: Annotated[float, RUNTIME] = Field(
        0, ge=0, le=64, description="GPUs that each slice reserves, in stages that can use a GPU. With .5 two slices share one. 0: slices compute on CPUs."
    )
    memory: Annotated[float, RUNTIME] = Field(0, ge=0, le=65_536, description="Memory that each slice reserves, in GiB. 0: memory is not checked.")

    def check(self) -> None:
        """Raises Refused if the address is malformed."""
        if self.address not in (None, AUTO) and not re.fullmatch(r"(ray://)?[^\s/@]+:\d+", self.address):
            raise Refused(f"ray.address = {json.dumps(without_secrets(self.address))}: give `auto`, HOST:PORT or ray://HOST:PORT, or leave it out.")


class _PipelineConfig(Section):
    """Settings of a run: the source of the images, the store for the tables, the number of clusters, and the settings of each stage."""

    source: Annotated[str | None, AfterValidator(lambda url: url and normalise_url(expanduser(url))), RUNTIME] = Field(
        None, description="A folder, a Parquet file or glob, or WebDataset tars; local or remote. Credentials in a URL are removed."
    )
    store: Annotated[str, AfterValidator(expanduser), RUNTIME] = Field(  # shells leave the ~ of --store=~/x as it is
        "gsec-store", min_length=1, description="Where all tables are kept: a folder or any fsspec URL (s3://, gs://)."
    )
    corpus: Annotated[str | None, RUNTIME] = Field(None, description="Name of the corpus in the store. Default: made from the source.")
    pipeline: Annotated[str | None, RUNTIME] = Field(
        None,
        description="Name under which a run is published if it passes its checks. Clusters keep the keys that they have in the last run that was published "
        "under this name. Default: the corpus's name.",
    )
    clusters: Literal["auto"] | Annotated[int, Field(ge=2, le=100_000)] = Field(
        10, description="Number of clusters. `auto`: gsec finds it from the images; if they show no clear number, it stops and says why."
    )
    method: str = Field(
        methods.DEFAULT, description="Method that trains the members: one that `gsec methods` lists, or several, separated by commas, for one common consensus."
    )
    max_rejects: Annotated[float, RUNTIME] = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of images that may be rejected. If more are, the run is not published automatically, and exits with code 3.",
    )
    threads: Annotated[int, RUNTIME] = Field(
        0,
        ge=0,
        le=1024,
        description="Threads for computing. 0: one for each core that CPU affinity and quota allow. Labels are the same only with the same number of threads.",
    )
    scratch: Annotated[str | None, AfterValidator(lambda folder: folder and expanduser(folder)), RUNTIME] = Field(
        None, description="Folder for temporary files, such as the features for training. Default: the system's."
    )
    engine: Annotated[Literal["threads", "ray"], RUNTIME] = Field(
        "threads", description="Where the slices of a stage run: `threads`, in threads of this process; `ray`, on the nodes of a Ray cluster."
    )
    max_workers: Annotated[int, RUNTIME] = Field(
        1, ge=1, le=64, description="With `engine = threads`: number of slices at the same time. On Ray as many run as fit on the nodes."
    )
    max_slices: Annotated[int, RUNTIME] = Field(
        200,
        ge=1,
        le=1000,
        description="Largest number of slices into which a stage's missing shards are divided. Each slice is a task, with its own bar on the dashboard.",
    )
    hang_timeout: Annotated[float, RUNTIME] = Field(
        3600,
        gt=0,
        le=604_800,
        description="Seconds without progress after which a stage counts as hung and is ended. For stage describe, describe.patience is added.",
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
            raise Refused("clusters = auto: this command needs a number. Find one by gsec run with --clusters auto, then give it here.")
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
            raise Refused("text.source = encoder: name the second encoder with text.encoder, which takes the same values as encode.encoder.")
        if source != ENCODER and self.text.encoder is not None:
            raise Refused(f"text.encoder = {self.text.encoder}: a second encoder needs text.source = encoder, and it is {source}. Set both or neither.")
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
