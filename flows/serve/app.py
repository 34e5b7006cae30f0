"""The application: routes, and the headers of every answer."""

import logging
import math
import re
import threading
import time
from collections.abc import Sequence
from functools import partial

import xxhash
from prometheus_client import CollectorRegistry, exposition
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from flows.serve import access, api, errors, metrics, operations, overview, pages
from flows.serve.collections import Collections
from flows.serve.explorer import Explorer
from flows.serve.known import UNPUBLISHED, Known, published_run
from gsec_core.config import PipelineConfig
from gsec_core.errors import BadShard, GsecError, Refused, Unreachable, without_secrets
from gsec_core.store import Run, Store
from gsec_core.tables import REPORT_TABLE

_log = logging.getLogger("gsec.serve")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "private, no-store",
}
"""Headers of every answer. Answers that browsers may cache set a Cache-Control of their own."""

_POLICY_OF_REPORTS = f"{pages.POLICY}; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
"""A report has its own, stricter policy in its head. This one also holds for a page without one, which then reaches no network and no other page."""

_OPENER_OF_REPORTS = "unsafe-none"
"""Browsers may refuse a sandboxed page with another opener policy. It loses nothing, because a sandboxed page has an origin of its own anyway."""

_PAGE = re.compile(r"index\.html|clusters/\d{5,}\.html")
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")

_HEALTH_SECONDS = 5
"""Seconds for which an answer of /health is reused: requests to it need no token, and must not cause more requests to the stores."""


def application(
    stores: Sequence[Store], token: str | None = None, config: PipelineConfig | None = None, curate: bool = False, by_link: bool = False
) -> Starlette:
    """The server application for several stores.

    Without a ``token``, it answers only requests addressed to this machine; with one, requests without the token get only `/health`. ``config`` gives
    threads, device and scratch folder of searches. ``curate``: whether clusters may be curated, which requires a token (ValueError). ``by_link``: whether
    an address with ``?token=`` logs a browser in.
    """
    if curate and token is None:
        raise ValueError("curation wants a token")
    known = [Known(store, curate) for store in {store.url: store for store in stores}.values()]
    collections = Collections(known, config)
    # Starlette runs these functions in threads, since they are not coroutines: they read stores, maybe over a network.
    routes = [
        Route("/", partial(_front, known)),
        Route("/health", partial(_Health().answer, known)),
        Route("/metrics", partial(_metrics, known)),
        Route("/published/{pipeline}", partial(_published, known)),
        Route("/runs/{run}", partial(_run, collections)),
        Route("/runs/{run}/report/{page:path}", partial(_page, collections)),
        *Explorer(known, collections, curate).routes(),
        Route(f"{api.ROOT}/", partial(_operations, known)),
        Mount(api.ROOT, api.application(known, collections, curate)),
    ]
    server = Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=partial(_guarded, collections, token, by_link))])
    server.router.redirect_slashes = False  # such a redirect would lead to the host in the request's Host header
    return server


async def _guarded(collections: Collections, token: str | None, by_link: bool, request: Request, answer: RequestResponseEndpoint) -> Response:
    """Middleware that checks access, converts errors to answers, adds headers, and logs a line, which never contains a query or a header."""
    began = time.monotonic()
    path: str = request.scope["path"]  # not request.url, which contains the Host header
    response = None if path == "/health" else access.login(token, request) if by_link else None
    if response is None and path != "/health":
        response = access.refusal(token, request)
    if response is None:
        try:
            response = await answer(request)
        except Exception as error:  # noqa: BLE001 - all errors end here; unforeseen ones are logged with their traceback
            status, sentence = await run_in_threadpool(errors.answer, request, error, collections)
            response = PlainTextResponse(f"{without_secrets(sentence)}\n", status)
    if path.startswith(f"{api.ROOT}/") and isinstance(response, PlainTextResponse):  # an error of this function, in the JSON form of the API
        response = api.problem(response.status_code, bytes(response.body).decode().strip(), response.headers.get("www-authenticate"))
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Content-Security-Policy", pages.POLICY)
    _log.info("%s %d %.0f ms", errors.asked(request), response.status_code, 1000 * (time.monotonic() - began))
    return response


def _front(stores: Sequence[Known], request: Request) -> Response:
    number = request.query_params.get("page", "1")
    if not _NUMBER.fullmatch(number):
        raise HTTPException(404)
    found = overview.overview(stores, int(number))
    if found.page > found.pages:
        raise HTTPException(404)
    return pages.front("overview.html.j2", overview=found)


def _operations(stores: Sequence[Known], request: Request) -> Response:
    """The page that describes the API."""
    described = api.described()
    found = {"about": described["info"]["description"], "root": api.ROOT, "everywhere": operations.everywhere(described)}
    return pages.front("api.html.j2", **found, operations=operations.operations(described, api.ROOT), schemas=operations.schemas(described))


class _Health:
    """Answers whether the stores can be listed. An answer is reused for `_HEALTH_SECONDS`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = -math.inf
        self._answer = ("", 0)

    def answer(self, stores: Sequence[Known], request: Request) -> Response:
        with self._lock:
            if time.monotonic() - self._asked > _HEALTH_SECONDS:
                self._answer = self._ask(stores)
                self._asked = time.monotonic()
            return PlainTextResponse(*self._answer)

    @staticmethod
    def _ask(stores: Sequence[Known]) -> tuple[str, int]:
        for number, store in enumerate(stores):
            try:
                store.check()
            except (GsecError, OSError) as error:
                _log.error("store %s: %s", store.url, without_secrets(str(error)))
                return f"store {number + 1} of {len(stores)} cannot be read\n", 503  # without the store's address, because /health needs no token
        return "ok\n", 200


def _metrics(stores: Sequence[Known], request: Request) -> Response:
    registry = CollectorRegistry()
    registry.register(metrics.Stores(stores))
    encode, kind = exposition.choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=None, headers={"Content-Type": kind})


def _published(stores: Sequence[Known], request: Request) -> Response:
    """Permanent address of the report of the run that a pipeline publishes: a redirect to it."""
    run_id = published_run(stores, request.path_params["pipeline"])
    if run_id is None:
        raise HTTPException(404, UNPUBLISHED)
    return RedirectResponse(_report(run_id), 302)


def _run(collections: Collections, request: Request) -> Response:
    store, run = collections.find(request.path_params["run"])
    return RedirectResponse(_report(store.asked(run).of_run or run.id), 302)


def _report(run_id: str) -> str:
    return f"/runs/{run_id}/report/index.html"


def _page(collections: Collections, request: Request) -> Response:
    """A page of a report, if the report's table lists it and the digest of its bytes is right."""
    page: str = request.path_params["page"]
    if not _PAGE.fullmatch(page):
        raise HTTPException(404)
    store, run = collections.find(request.path_params["run"])
    if "report" not in store.asked(run).stages:
        raise HTTPException(404)
    try:
        shards, names = run.table(REPORT_TABLE)
        digests = {row["page"]: row["digest"] for row in shards.read(names[0]).to_pylist()}
    except (Refused, FileNotFoundError):
        collections.check_there(run.id)
        return PlainTextResponse(f"Run {run.id} has no report yet.\n", 404)
    except Unreachable:
        raise
    except (BadShard, ValueError, LookupError, TypeError) as error:
        _log.error("the report of run %s: %s: %s", run.id, type(error).__name__, error)
        return _damaged(run)
    if page not in digests:
        raise HTTPException(404)
    tag = f'"{digests[page].hex()}"'
    kept = {"ETag": tag, "Cache-Control": "private, no-cache", "Content-Security-Policy": _POLICY_OF_REPORTS, "Cross-Origin-Opener-Policy": _OPENER_OF_REPORTS}
    if pages.has_tag(request, tag):
        return Response(status_code=304, headers=kept)
    try:
        data = shards.files.read(f"{shards.directory}/{page}")
    except FileNotFoundError:
        collections.check_there(run.id)
        data = b""
    if xxhash.xxh3_128_digest(data) != digests[page]:
        return _damaged(run)
    return HTMLResponse(data, headers=kept)


def _damaged(run: Run) -> Response:
    return PlainTextResponse(f"The report of run {run.id} is damaged. gsec doctor --verify and the next gsec run make it again.\n", 500)
