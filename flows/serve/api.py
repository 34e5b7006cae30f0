"""The JSON API, mounted at `ROOT`. It serves the data of the explorer's pages, from the same collections."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote, urlencode

import xxhash
from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError, with_config
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from flows.serve import curating, errors, pages
from flows.serve.collections import Collections
from flows.serve.known import DAMAGED, FINISHED, Asked, Damaged, Known, Result
from gsec_core.errors import NotFound, Refused, without_secrets
from gsec_core.explore import MOST_ROWS, ActRow, ClusterRow, Collection, DuplicateGroup, ImageDetail, ImageRow, Tree, act_row, polygon
from gsec_core.explore.rows import documented
from gsec_core.store import Run

T = TypeVar("T")

ROOT = "/api/v1"

MOST_UPLOAD_BYTES = 20 * 2**20
MOST_SAID_BYTES = 2**20
_UPLOADS = 4
"""Maximal number of uploads at once; others wait before they are read."""
_UPLOAD_SECONDS = 120
"""Seconds that an upload may take, because a stalled upload keeps others waiting."""

_ABOUT = """\
Finished runs and their images as JSON. Lists are paged by `offset` and `limit`; `next` is the address of the next part, or null. Answers about a\
 finished run have an ETag, which changes only if the answer does. A request that fails is answered with `{"error": SENTENCE}`."""

_MOST_LETTERS = 20_000
"""Maximal length of a query parameter."""

_log = logging.getLogger("gsec.serve")


@documented
@dataclass(frozen=True)
class Problem:
    """The answer to a request that failed."""

    error: str
    """A sentence that says what is wrong, with which value, and what to do."""


@documented
@dataclass(frozen=True)
class RunRow:
    """A run."""

    run: str
    """Its id, 32 hex digits."""
    store: str
    corpus: str
    pipeline: str
    created: str
    """Time of the request for the run, UTC."""
    state: str
    """`finished`, or another state as in `gsec status`."""
    explorable: bool
    """Whether it is finished and has clusters of its own. Only then do the other addresses work for it."""
    published: bool
    """Whether its pipeline publishes it now."""
    images: int | None
    """Number of images; null unless the run is finished, and if it only finds the number of clusters."""
    clusters: int | None
    """Number of clusters; null unless the run is finished and makes clusters."""


@documented
@dataclass(frozen=True)
class RunList:
    """A part of the list of runs, newest first."""

    rows: list[RunRow]
    total: int
    offset: int
    limit: int
    next: str | None
    """Address of the next part; null after the last part."""


@documented
@dataclass(frozen=True)
class PublishedRow:
    """The run that a pipeline publishes now."""

    pipeline: str
    run: str
    at: str
    """Time of publication, UTC."""


@documented
@dataclass(frozen=True)
class ImageList:
    """A part of a list of images."""

    rows: tuple[ImageRow, ...]
    total: int
    offset: int
    limit: int
    note: str | None
    """What users should know about the list, in words."""
    next: str | None
    """Address of the next part; null after the last part."""


@documented
@dataclass(frozen=True)
class DuplicateList:
    """A part of the list of groups of duplicates, the largest first."""

    groups: tuple[DuplicateGroup, ...]
    total: int
    """Number of groups in the whole list."""
    images: int
    """Number of images in all groups."""
    offset: int
    limit: int
    note: str | None
    next: str | None
    """Address of the next part; null after the last part."""


@documented
@dataclass(frozen=True)
class ActList:
    """A part of the curation log, newest first."""

    rows: tuple[ActRow, ...]
    total: int
    offset: int
    limit: int
    next: str | None
    """Address of the next part; null after the last part."""


@with_config(use_attribute_docstrings=True, extra="forbid")  # a misspelt `images` would leave an act on the whole cluster
@dataclass(frozen=True)
class Said:
    """An act to add to the curation log. Each kind takes the same values as the command `gsec curate KIND`."""

    kind: Literal["rename", "describe", "merge", "split", "move", "hide", "show", "star", "unstar", "undo"]
    who: str
    """Your name, for the log."""
    why: str | None = None
    key: int | None = None
    """Key of the cluster that the act is about; for `merge` and `move`, of the cluster that gets the images."""
    keys: tuple[int, ...] = ()
    """For `merge`: keys of the clusters that become part of it."""
    text: str | None = None
    """For `rename` and `describe`: the new name or description."""
    images: tuple[str, ...] = ()
    """For `move`, and for `hide`, `show`, `star` and `unstar` of images: their ids."""
    parts: int | None = None
    """For `split`: the number of parts."""
    undoes: int | None = None
    """For `undo`: the number of the act."""


class _NotModified(Exception):
    """Raised if the client has the current answer already."""


class _Route(APIRoute):
    """Route that answers errors as JSON, and unchanged answers with 304."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handler(request: Request) -> Response:
            request.state.kept = {}
            try:
                response = await answer(request)
            except _NotModified:
                response = Response(status_code=304)
            except (HTTPException, RequestValidationError):
                raise
            except Exception as error:  # noqa: BLE001 - all errors end here; unforeseen ones are logged with their traceback
                return problem(*await run_in_threadpool(errors.answer, request, error, _serving(request).collections))
            response.headers.update(request.state.kept)
            return response

        return handler


def problem(status: int, sentence: str, challenge: str | None = None) -> JSONResponse:
    """The answer for an error: a `Problem` with this HTTP status."""
    return JSONResponse(asdict(Problem(without_secrets(sentence))), status, None if challenge is None else {"WWW-Authenticate": challenge})


@dataclass(frozen=True)
class _Serving:
    """State that the endpoints use."""

    stores: Sequence[Known]
    collections: Collections
    uploads: asyncio.Semaphore
    curate: bool


def _serving(request: Request) -> _Serving:
    found: _Serving = request.app.state.serving
    return found


def _keep(request: Request, version_: str) -> None:
    """Let the client cache the answer while ``version_`` is the same. Raises _NotModified if the client has it already."""
    asked = f"{version('gsec')} {version_} {request.scope['path']}?{request.url.query}"
    tag = f'"{xxhash.xxh3_128_hexdigest(asked.encode())}"'
    request.state.kept = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if pages.has_tag(request, tag):
        raise _NotModified


RunId = Annotated[str, Path(description="A run's id, 32 hex digits.", pattern="^[0-9a-f]{32}$")]
ImageId = Annotated[str, Path(description="An image's id, 32 hex digits.", pattern="^[0-9a-f]{32}$")]
Key = Annotated[int, Path(description="A cluster's key.", ge=0, lt=2**31)]
Offset = Annotated[int, Query(description="Number of rows to skip.", ge=0, le=2**31)]
Limit = Annotated[int, Query(description="Largest number of rows in the answer.", ge=1, le=MOST_ROWS)]
Hidden = Annotated[bool, Query(description="Whether the list includes what is hidden.")]


def _opened(request: Request, run: RunId) -> Collection:
    return _serving(request).collections.open(run)


def _kept(request: Request, collection: Annotated[Collection, Depends(_opened)]) -> Collection:
    _keep(request, collection.version)
    return collection


Opened = Annotated[Collection, Depends(_opened)]
Kept = Annotated[Collection, Depends(_kept)]
"""Like `Opened`, but a client that has the answer already gets 304."""

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A parameter has a wrong value."},
    404: {"model": Problem, "description": "There is no such run, cluster or image."},
    409: {"model": Problem, "description": "The run is not finished, or has no clusters of its own."},
}

router = APIRouter(route_class=_Route, responses=_PROBLEMS)


@router.get("/runs", tags=["Runs"])
def runs(request: Request, offset: Offset = 0, limit: Limit = 50) -> RunList:
    """All runs of all stores, newest first."""
    found = [(asked, run, store) for store in _serving(request).stores for asked, run in store.runs()[0]]
    found.sort(key=lambda one: one[0].created, reverse=True)
    published = {publication.run_id for store in _serving(request).stores for publication in store.publications()[0]}
    rows = [_run_row(*one, published) for one in found[offset : offset + limit]]
    return RunList(rows, len(found), offset, limit, _next(request, offset, limit, len(found)))


@router.get("/published", tags=["Runs"])
def published(request: Request) -> list[PublishedRow]:
    """The run that each pipeline publishes now. If several stores have a pipeline of the same name, the first store counts."""
    found = [publication for store in _serving(request).stores for publication in store.publications()[0]]
    rows = {one.pipeline: PublishedRow(one.pipeline, one.run_id, one.at) for one in reversed(found)}
    return [rows[name] for name in sorted(rows)]


@router.get("/runs/{run}", tags=["Runs"])
def run(request: Request, run: RunId) -> RunRow:
    """One run."""
    store, found = _serving(request).collections.find(run)
    published = {publication.run_id for publication in store.publications()[0]}
    return _run_row(store.asked(found), found, store, published)


@router.get("/runs/{run}/clusters", tags=["Clusters"])
def clusters(collection: Kept, hidden: Hidden = False) -> tuple[ClusterRow, ...]:
    """The clusters after curation, the largest first."""
    return collection.clusters(hidden)


@router.get("/runs/{run}/clusters/{key}", tags=["Clusters"])
def cluster(collection: Kept, key: Key) -> ClusterRow:
    """One cluster."""
    return collection.cluster(key)


@router.get("/runs/{run}/images", tags=["Images"])
def images(
    request: Request,
    collection: Kept,
    cluster: Annotated[int | None, Query(description="The key of a cluster. Default: images of all clusters.", ge=0, lt=2**31)] = None,
    sort: Annotated[
        Literal["confidence", "outlier", "date", "name"], Query(description="Order of the list. With `date`, the note of the list says which date is meant.")
    ] = "confidence",
    descending: Annotated[bool | None, Query(description="Whether the order descends. Default: it does, except by `name`.")] = None,
    within: Annotated[
        str | None, Query(description="A polygon on the map, x1,y1,x2,y2,… in the unit square: only images that lie in it.", max_length=_MOST_LETTERS)
    ] = None,
    hidden: Hidden = False,
    offset: Offset = 0,
    limit: Limit = 50,
) -> ImageList:
    """Images of a cluster, of a part of the map, or of the whole run."""
    return _part(ImageList, request, collection.images(cluster, sort, descending, None if within is None else polygon.parsed(within), hidden, offset, limit))


@router.get("/runs/{run}/images/{id}", tags=["Images"])
def image(request: Request, collection: Opened, id: ImageId) -> ImageDetail:
    """All that is known about one image. In a large run the first answers may be `pending`."""
    found = collection.image(id)
    if not found.pending:
        _keep(request, f"{collection.run.id} {found}")  # history and notes can change without curation
    return found


_JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}, "description": "A JPEG."}}


@router.get("/runs/{run}/images/{id}/thumbnail", tags=["Images"], response_class=Response, responses=_JPEG)
def thumbnail(request: Request, collection: Opened, id: ImageId) -> Response:
    """The thumbnail of one image."""
    _keep(request, collection.run.id)
    found = collection.thumbnail(id)
    if found is None:
        request.state.kept = {}
        raise NotFound(f"image {id}: the store has no thumbnail of it.")
    return Response(found, media_type="image/jpeg")


@router.get("/runs/{run}/search", tags=["Search"])
def search(
    request: Request,
    collection: Kept,
    q: Annotated[str | None, Query(description="Words, or a sentence.", max_length=_MOST_LETTERS)] = None,
    like: Annotated[str | None, Query(description="An image's id.", pattern="^[0-9a-f]{32}$")] = None,
    offset: Offset = 0,
    limit: Limit = 50,
) -> ImageList:
    """The images nearest to words, or to an image of the run. Give either `q` or `like`."""
    if (q is None) == (like is None):
        raise Refused("search: give one of q and like.")
    return _part(ImageList, request, collection.by_words(q, offset, limit) if q is not None else collection.like(str(like), offset, limit))


_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/*", "application/octet-stream")},
    }
}
_OF_UPLOADS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": f"The image did not arrive within {_UPLOAD_SECONDS} s."},
    413: {"model": Problem, "description": f"The image is larger than {MOST_UPLOAD_BYTES // 2**20} MiB."},
    415: {"model": Problem, "description": "The Content-Type is not that of an image."},
}


@router.post("/runs/{run}/search", tags=["Search"], openapi_extra=_UPLOAD, responses=_OF_UPLOADS)
async def search_by_upload(
    request: Request, run: RunId, offset: Offset = 0, limit: Limit = 50, content_type: Annotated[str, Header(include_in_schema=False)] = ""
) -> ImageList:
    """The images nearest to an uploaded image, which is the body of the request. The upload is not stored."""
    kind = content_type.partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind == "application/octet-stream"):
        raise HTTPException(415, "Send the image as it is, with its Content-Type, image/jpeg for instance.")
    async with _serving(request).uploads:
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                data = await body(request, MOST_UPLOAD_BYTES)
        except TimeoutError:
            raise HTTPException(408, f"The image did not come within {_UPLOAD_SECONDS} s. Send it again.") from None
        collection = await run_in_threadpool(_serving(request).collections.open, run)
        found = await run_in_threadpool(collection.like_upload, data, offset, limit)
    return ImageList(**vars(found), next=None)


_BINARY: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}, "description": "6 bytes for each image."}}


@router.get("/runs/{run}/map", tags=["Map and tree"], response_class=Response, responses=_BINARY)
def map_points(collection: Kept) -> Response:
    """The map: three little-endian uint16 for each image: x and y, from 0 to 65,535, and its cluster's place in the list of clusters (65,535 if hidden)."""
    return Response(collection.map_points(), media_type="application/octet-stream")


@router.get("/runs/{run}/duplicates", tags=["Images"])
def duplicates(request: Request, collection: Kept, offset: Offset = 0, limit: Limit = 50) -> DuplicateList:
    """Groups of exact and near copies."""
    return _part(DuplicateList, request, collection.duplicates(offset, limit))


@router.get("/runs/{run}/tree", tags=["Map and tree"])
def tree(collection: Kept, groups: Annotated[int | None, Query(description="Cut the tree into this number of groups.", ge=1, lt=2**31)] = None) -> Tree:
    """The clusters as a tree."""
    return collection.tree(groups)


async def body(request: Request, most: int) -> bytes:
    """The body of a request. Raises HTTPException 413 if it is longer than ``most`` bytes, without reading the rest."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise HTTPException(413, f"More than {most // 2**20} MiB: send less.")
    return bytes(data)


@router.get("/runs/{run}/curation", tags=["Curation"])
def curation(request: Request, collection: Kept, offset: Offset = 0, limit: Limit = 50) -> ActList:
    """The curation log of the run's pipeline. For each act it says whether it could be applied to this run."""
    return _part(ActList, request, collection.curation(offset, limit))


_SAID = TypeAdapter(Said)
_SAYING = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Said"}}}}}
_OF_CURATION: dict[int | str, dict[str, Any]] = {
    403: {"model": Problem, "description": "The server only reads: it was started without `--curate`."},
    413: {"model": Problem, "description": f"The body is larger than {MOST_SAID_BYTES // 2**20} MiB."},
    415: {"model": Problem, "description": "The Content-Type is not application/json."},
}


@router.post("/runs/{run}/curation", tags=["Curation"], openapi_extra=_SAYING, responses=_OF_CURATION)
async def curate(request: Request, run: RunId, content_type: Annotated[str, Header(include_in_schema=False)] = "") -> ActRow:
    """Add an act to the curation log. It is refused if it cannot be applied to the clusters of this run."""
    if not _serving(request).curate:
        raise HTTPException(403, "This server only reads. Start it with gsec serve --curate.")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send application/json.")
    try:
        said = _SAID.validate_json(await body(request, MOST_SAID_BYTES))
    except ValidationError as error:
        raise Refused(_first(error.errors(include_url=False))) from None
    collection = await run_in_threadpool(_serving(request).collections.open, run)
    return act_row(await run_in_threadpool(partial(curating.said, collection, **vars(said))))


def application(stores: Sequence[Known], collections: Collections, curate: bool = False) -> FastAPI:
    """The API alone, without access control, which is left to the application that mounts it. With ``curate``, every client may add acts of curation."""
    api = FastAPI(title="gsec", version="1", description=_ABOUT, docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False)
    api.state.serving = _Serving(stores, collections, asyncio.Semaphore(_UPLOADS), curate)
    api.include_router(router)
    described = api.openapi

    def with_bodies() -> dict[str, Any]:
        found = described()
        found["components"]["schemas"]["Said"] = _SAID.json_schema()  # FastAPI does not know it, because the endpoint parses its body itself
        return found

    api.openapi = with_bodies  # type: ignore[method-assign]
    api.add_exception_handler(HTTPException, _http_problem)
    api.add_exception_handler(RequestValidationError, _invalid)
    return api


@cache
def described() -> dict[str, Any]:
    """The OpenAPI document, which does not depend on the stores."""
    return application([], Collections([])).openapi()


def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = {404: "There is no such address.", 405: "This address does not take this method."}.get(error.status_code, str(error.detail))
    response = problem(error.status_code, sentence)
    response.headers.update(error.headers or {})
    return response


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem(400, _first([{**one, "loc": one["loc"][1:]} for one in error.errors()]))


def _first(errors: Sequence[Any]) -> str:
    return f"{'.'.join(str(part) for part in errors[0]['loc']) or 'the body'}: {errors[0]['msg']}."


def _run_row(asked: Asked, run: Run, store: Known, published: set[str]) -> RunRow:
    result: Result | None = None
    try:
        state = store.state(run)
        result = store.result(run)
    except Damaged:
        state = DAMAGED
    images, clusters = (None, None) if result is None else (result.images, result.clusters)
    explorable = state == FINISHED and asked.makes_clusters
    return RunRow(run.id, without_secrets(store.url), asked.corpus, asked.pipeline, asked.created, state, explorable, run.id in published, images, clusters)


def _part(kind: Callable[..., T], request: Request, found: Any) -> T:
    """A part of a list as a collection returns it, with the address of the next part."""
    return kind(**vars(found), next=_next(request, found.offset, found.limit, found.total))


def _next(request: Request, offset: int, limit: int, total: int) -> str | None:
    if offset + limit >= total:
        return None
    query = [*((name, value) for name, value in request.query_params.multi_items() if name != "offset"), ("offset", offset + limit)]
    return f"{quote(request.scope['path'])}?{urlencode(query)}"
