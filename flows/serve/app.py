"""The application: who may ask, what is answered, and the headers on every answer."""

import base64
import binascii
import hmac
import ipaddress
import logging
import math
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from urllib.parse import quote, urlsplit

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

from flows.serve import api, metrics, operations, overview, pages
from flows.serve.collections import Collections
from flows.serve.explorer import Explorer
from flows.serve.known import Damaged, Known
from gsec_core.config import PipelineConfig
from gsec_core.errors import BadRecord, BadShard, GsecError, Refused, Unreachable, without_secrets
from gsec_core.store import Run, Store
from gsec_core.tables import REPORT_TABLE

_log = logging.getLogger("gsec.serve")

TOKEN = "GSEC_REPORTS_TOKEN"
"""Environment variable that the process has the token in."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "private, no-store",
}
"""On every answer; a page of a report may be kept."""

_POLICY_OF_REPORTS = f"{pages.POLICY}; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
"""A report brings its own, stricter, in its head. This one holds for any other page, too: it reaches no network and no other page."""

_OPENER_OF_REPORTS = "unsafe-none"
"""Browsers may refuse to show a page that is both in a sandbox and without an opener; in a sandbox it is an origin of its own anyway."""

_PAGE = re.compile(r"index\.html|clusters/\d{5,}\.html")
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")

_HEALTH_SECONDS = 5
"""Anybody may ask for the health, but nobody makes the server ask the stores more often."""

_LOGGED = 200
"""Letters of an address that the log has."""

Answer = Callable[[Sequence[Known], Request], Response]


def application(
    stores: Sequence[Store], token: str | None = None, config: PipelineConfig | None = None, curate: bool = False, by_link: bool = False
) -> Starlette:
    """The server of some stores. Without a ``token`` only this machine is answered; with one, a request that lacks it gets nothing but `/health`.

    ``config``: threads, device and scratch folder of searches. ``curate``: whether its forms are taken, which wants a token. ``by_link``: whether an address
    with ``?token=`` logs a browser in.
    """
    if curate and token is None:
        raise ValueError("curation wants a token")
    known = [Known(store, curate) for store in {store.url: store for store in stores}.values()]
    collections = Collections(known, config)
    routes = [
        Route("/", _answering(_front, known)),
        Route("/health", _answering(_Health(), known)),
        Route("/metrics", _answering(_metrics, known)),
        Route("/published/{pipeline}", _answering(_published, known)),
        Route("/runs/{run}", _answering(_run, known)),
        Route("/runs/{run}/report/{page:path}", _answering(_page, known)),
        *Explorer(known, collections, curate).routes(),
        Route(f"{api.ROOT}/", _answering(_operations, known)),
        Mount(api.ROOT, api.application(known, collections, curate)),
    ]
    server = Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=partial(_guarded, token, by_link))])
    server.router.redirect_slashes = False  # such a redirect would lead to wherever the request says that it was sent
    return server


def is_loopback(host: str) -> bool:
    """Whether this is a name of this machine that no other can have."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _answering(answer: Answer, stores: Sequence[Known]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(answer, stores, request)  # stores are read, over a network perhaps

    return endpoint


async def _guarded(token: str | None, by_link: bool, request: Request, answer: RequestResponseEndpoint) -> Response:
    """Who asks, what went wrong, the headers, and a line in the log, which never has a query or a header."""
    began = time.monotonic()
    path: str = request.scope["path"]  # and not request.url, of which the header Host is a part
    asked = f"{request.method} {quote(path)[:_LOGGED]}"
    response = None if path == "/health" else _login(token, request) if by_link else None
    if response is None and path != "/health":
        response = _refusal(token, request)
    if response is None:
        try:
            response = await answer(request)
        except (Damaged, BadShard, BadRecord) as error:
            _log.error("%s: %s", asked, without_secrets(str(error)))
            response = PlainTextResponse("A table or record of this run is damaged; the server's log says which.\n", 500)
        except (GsecError, OSError) as error:
            _log.error("%s: %s", asked, without_secrets(str(error)))
            response = PlainTextResponse(f"The store cannot be read: {type(error).__name__}. The server's log says more.\n", 503)
        except Exception:  # noqa: BLE001 - the last word of a request; the traceback is logged
            _log.exception("%s", asked)
            response = PlainTextResponse("A fault in gsec; the server's log says more.\n", 500)
    if path.startswith(f"{api.ROOT}/") and isinstance(response, PlainTextResponse):  # one of this function: programs want them like all others
        response = api.problem(response.status_code, bytes(response.body).decode().strip(), response.headers.get("www-authenticate"))
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Content-Security-Policy", pages.POLICY)
    _log.info("%s %d %.0f ms", asked, response.status_code, 1000 * (time.monotonic() - began))
    return response


def _refusal(token: str | None, request: Request) -> Response | None:
    """Why a request gets no answer; None if it gets one."""
    if token is None:
        # Any page in a browser of this machine can send requests here; under a name of its own, which it lets point here, it could read the answers too.
        if is_loopback(_host(request.headers.get("host", "localhost"))):
            return _refusal_of_other_pages(request)
        return PlainTextResponse(f"Without a token this server answers to 127.0.0.1, [::1] and localhost alone. Set {TOKEN}, or send such a Host.\n", 421)
    name, value = _cookie(token)
    if _has(token, request.headers.get("authorization", "")) or hmac.compare_digest(request.cookies.get(name, "").encode(), value.encode()):
        return _refusal_of_other_pages(request)
    challenge = {"WWW-Authenticate": 'Basic realm="gsec", charset="UTF-8"'}
    return PlainTextResponse("This needs the token: as a bearer token, or as a password with any user name.\n", 401, challenge)


def _login(token: str | None, request: Request) -> Response | None:
    """Of an address with the token in it: a cookie in its place, and the same address without."""
    given = request.query_params.get("token")
    if token is None or given is None or not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode("utf-8", "surrogateescape")):
        return None
    path = request.scope["path"]
    response = RedirectResponse("/" if path.startswith("//") else quote(path), 303)
    name, value = _cookie(token)
    response.set_cookie(name, value, httponly=True, samesite="strict")
    return response


def _cookie(token: str) -> tuple[str, str]:
    """Name and value of what stands for the token. Servers of one machine share their cookies, whatever their ports: each has a name of its own."""
    value = hmac.digest(os.fsencode(token), b"cookie", "sha256").hex()
    return f"gsec-{value[:8]}", value[8:]


def _refusal_of_other_pages(request: Request) -> Response | None:
    """Of what a page of another server made a browser send, which adds by itself what logs it in. Programs say nothing of where they are from."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    if site == "same-origin" or (site is None and (origin is None or origin.partition("://")[2] == request.headers.get("host"))):
        return None
    return PlainTextResponse("This request came from a page of another server: nothing was done.\n", 403)


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _has(token: str, authorization: str) -> bool:
    scheme, _, rest = authorization.partition(" ")
    given = rest.strip(" ").encode("latin-1")  # as it was sent
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given, os.fsencode(token))


def _front(stores: Sequence[Known], request: Request) -> Response:
    number = request.query_params.get("page", "1")
    if not _NUMBER.fullmatch(number):
        raise HTTPException(404)
    found = overview.overview(stores, int(number))
    if found.page > found.pages:
        raise HTTPException(404)
    return pages.front("overview.html.j2", overview=found)


def _operations(stores: Sequence[Known], request: Request) -> Response:
    """What the API can do, for people."""
    described = api.described()
    found = {"about": described["info"]["description"], "root": api.ROOT, "everywhere": operations.everywhere(described)}
    return pages.front("api.html.j2", **found, operations=operations.operations(described, api.ROOT), schemas=operations.schemas(described))


class _Health:
    """Whether the stores can be listed, as it was a moment ago."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = -math.inf
        self._answer = ("", 0)

    def __call__(self, stores: Sequence[Known], request: Request) -> Response:
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
                return f"store {number + 1} of {len(stores)} cannot be read\n", 503  # said to anybody, so without its address
        return "ok\n", 200


def _metrics(stores: Sequence[Known], request: Request) -> Response:
    registry = CollectorRegistry()
    registry.register(metrics.Stores(stores))
    encode, kind = exposition.choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=None, headers={"Content-Type": kind})


def _published(stores: Sequence[Known], request: Request) -> Response:
    """Where the report of what a pipeline publishes now is: an address to keep."""
    for store in stores:
        for publication in store.publications()[0]:
            if publication.pipeline == request.path_params["pipeline"]:
                return RedirectResponse(_report(publication.run_id), 302)
    raise HTTPException(404)


def _run(stores: Sequence[Known], request: Request) -> Response:
    store, run = _find(stores, request)
    return RedirectResponse(_report(store.asked(run).of_run or run.id), 302)


def _report(run_id: str) -> str:
    return f"/runs/{run_id}/report/index.html"


def _page(stores: Sequence[Known], request: Request) -> Response:
    """A page of a report, if the report's table has it and its bytes are those that were drawn."""
    page: str = request.path_params["page"]
    if not _PAGE.fullmatch(page):
        raise HTTPException(404)
    store, run = _find(stores, request)
    if "report" not in store.asked(run).stages:
        raise HTTPException(404)
    try:
        shards, names = run.table(REPORT_TABLE)
        digests = {row["page"]: row["digest"] for row in shards.read(names[0]).to_pylist()}
    except (Refused, FileNotFoundError):
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
        data = b""
    if xxhash.xxh3_128_digest(data) != digests[page]:
        return _damaged(run)
    return HTMLResponse(data, headers=kept)


def _damaged(run: Run) -> Response:
    return PlainTextResponse(f"The report of run {run.id} is damaged. gsec doctor --verify and the next gsec run make it again.\n", 500)


def _find(stores: Sequence[Known], request: Request) -> tuple[Known, Run]:
    for store in stores:
        run = store.find(request.path_params["run"])
        if run is not None:
            return store, run
    raise HTTPException(404)
