"""The application: who may ask, what is answered, and the headers on every answer."""

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache, partial
from importlib import resources

import jinja2
import xxhash
from markupsafe import Markup
from prometheus_client import CollectorRegistry, exposition
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from flows.serve import metrics, overview
from gsec_core.errors import BadShard, GsecError, Refused, without_secrets
from gsec_core.report.pages import asset, figure
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
"""On every answer; a page of a report may be kept."""

_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_POLICY_OF_REPORTS = "frame-ancestors 'none'"
"""A report brings its own, stricter, in its head."""

_RUN = re.compile(r"[0-9a-f]{32}")
_PAGE = re.compile(r"index\.html|clusters/\d{5,}\.html")

Answer = Callable[[Sequence[Store], Request], Response]


def application(stores: Sequence[Store], token: str | None = None) -> Starlette:
    """The server of some stores. With a ``token`` whoever does not have it gets nothing but `/health`."""
    routes = [
        Route("/", _answering(_front, stores)),
        Route("/health", _answering(_health, stores)),
        Route("/metrics", _answering(_metrics, stores)),
        Route("/published/{pipeline}", _answering(_published, stores)),
        Route("/runs/{run}", _answering(_run, stores)),
        Route("/runs/{run}/report/{page:path}", _answering(_page, stores)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=partial(_guarded, token))])


def _answering(answer: Answer, stores: Sequence[Store]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(answer, stores, request)  # stores are read, over a network perhaps

    return endpoint


async def _guarded(token: str | None, request: Request, answer: RequestResponseEndpoint) -> Response:
    """Who asks, what went wrong, the headers, and a line in the log, which never has a query or a header."""
    began = time.monotonic()
    if token is not None and request.url.path != "/health" and not _has(token, request.headers.get("authorization", "")):
        response: Response = PlainTextResponse("The token is wanted: as a bearer, or as the password of any user.\n", 401)
        response.headers["WWW-Authenticate"] = 'Basic realm="gsec", charset="UTF-8"'
    else:
        try:
            response = await answer(request)
        except (GsecError, OSError) as error:
            _log.error("%s %s: %s", request.method, request.url.path, without_secrets(str(error)))
            response = PlainTextResponse(f"The store cannot be read: {type(error).__name__}. The server's log says more.\n", 503)
        except Exception:  # noqa: BLE001 - the last word of a request; the traceback is logged
            _log.exception("%s %s", request.method, request.url.path)
            response = PlainTextResponse("A fault in gsec; the server's log says more.\n", 500)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Content-Security-Policy", _POLICY)
    _log.info("%s %s %d %.0f ms", request.method, request.url.path, response.status_code, 1000 * (time.monotonic() - began))
    return response


def _has(token: str, authorization: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), token.encode())


def _front(stores: Sequence[Store], request: Request) -> Response:
    page = _templates().get_template("overview.html.j2").render(overview=overview.overview(stores), stores=[store.url for store in stores])
    policy = f"{_POLICY}; img-src data:; style-src {' '.join(map(_digest, _styles()))}"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _health(stores: Sequence[Store], request: Request) -> Response:
    """Whether the stores can be listed."""
    for number, store in enumerate(stores):
        try:
            store.files.directories("")
        except (GsecError, OSError) as error:
            _log.error("store %s: %s", store.url, without_secrets(str(error)))
            return PlainTextResponse(f"store {number + 1} of {len(stores)} cannot be read\n", 503)  # said to anybody, so without its address
    return PlainTextResponse("ok\n")


def _metrics(stores: Sequence[Store], request: Request) -> Response:
    registry = CollectorRegistry()
    registry.register(metrics.Stores(stores))
    encode, kind = exposition.choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=None, headers={"Content-Type": kind})


def _published(stores: Sequence[Store], request: Request) -> Response:
    """Where the report of what a pipeline publishes now is: an address to keep."""
    for store in stores:
        for publication in overview.publications(store):
            if publication.pipeline == request.path_params["pipeline"]:
                return RedirectResponse(f"/runs/{publication.run_id}/report/index.html", 302)
    raise HTTPException(404)


def _run(stores: Sequence[Store], request: Request) -> Response:
    run = _find(stores, request)
    return RedirectResponse(f"/runs/{overview.request_of(run).get('of_run') or run.id}/report/index.html", 302)


def _page(stores: Sequence[Store], request: Request) -> Response:
    """A page of a report, if the report's table has it and its bytes are those that were drawn."""
    run, page = _find(stores, request), request.path_params["page"]
    if not _PAGE.fullmatch(page) or "report" not in overview.request_of(run)["stages"]:
        raise HTTPException(404)
    try:
        shards, names = run.table(REPORT_TABLE)
        digests = {row["page"]: row["digest"] for row in shards.read(names[0]).to_pylist()}
    except Refused:
        return PlainTextResponse(f"Run {run.id} has no report yet.\n", 404)
    except BadShard as error:
        _log.error("%s", error)
        return _damaged(run)
    if page not in digests:
        raise HTTPException(404)
    tag = f'"{digests[page].hex()}"'
    kept = {"ETag": tag, "Cache-Control": "private, no-cache", "Content-Security-Policy": _POLICY_OF_REPORTS}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=kept)
    try:
        data = shards.files.read(f"{shards.directory}/{page}")
    except FileNotFoundError:
        data = b""
    if xxhash.xxh3_128_digest(data) != digests[page]:
        return _damaged(run)
    return HTMLResponse(data, headers=kept)


def _damaged(run: Run) -> Response:
    return PlainTextResponse(f"The report of run {run.id} is damaged. gsec doctor --verify and the next gsec run make it anew.\n", 500)


def _find(stores: Sequence[Store], request: Request) -> Run:
    id = request.path_params["run"]
    run = overview.find(stores, id) if _RUN.fullmatch(id) else None
    if run is None:
        raise HTTPException(404)
    return run


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flows.serve"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"figure": figure, "percent": lambda value: "–" if value is None else f"{value:.1%}", "when": _when}
    environment.globals["styles"] = [Markup(style) for style in _styles()]
    return environment


def _styles() -> tuple[str, str]:
    """The look of the reports, and what the front page adds."""
    return str(asset("report.css")), resources.files("flows.serve").joinpath("templates", "overview.css").read_text("utf-8")


def _digest(style: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


def _when(at: str) -> str:
    """A record's time, to the minute: it is UTC."""
    return at[:16].replace("T", " ")
