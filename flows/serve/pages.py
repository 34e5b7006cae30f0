"""Rendering of pages: templates, their security headers, and static files."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import xxhash
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gsec_core.report.pages import asset, policy_hash, templates
from gsec_core.report.text import visible

POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy of every answer that sets none of its own."""

_POLICY_OF_EXPLORER = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; require-trusted-types-for 'script'"
)

_REFERRER = "same-origin"
"""Referrer-Policy of the explorer. With the server's `no-referrer`, browsers send a form with `Origin: null`, and over plain HTTP without any other origin."""

_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


def front(name: str, **values: Any) -> Response:
    """Render a page with inline styles, whose hashes are in its policy."""
    styles = " ".join(f"'{policy_hash(style)}'" for style in _styles())
    return HTMLResponse(_templates().get_template(name).render(values), headers={"Content-Security-Policy": f"{POLICY}; img-src data:; style-src {styles}"})


def explorer(name: str, status: int = 200, **values: Any) -> Response:
    """Render a page of the explorer, whose styles and scripts are static files (see `static`)."""
    page = _templates().get_template(f"explore/{name}.html.j2").render(values)
    return HTMLResponse(page, status, headers={"Content-Security-Policy": _POLICY_OF_EXPLORER, "Referrer-Policy": _REFERRER})


def static(request: Request) -> Response:
    """Answer with a style sheet or script of the explorer."""
    name = request.path_params["name"]
    if name not in _static():
        raise HTTPException(404)
    return kept(request, _static()[name], _KINDS[name.rpartition(".")[2]])


def kept(request: Request, data: bytes, kind: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with bytes that a browser may cache but must revalidate; 304 if it has them already."""
    tag = f'"{xxhash.xxh3_128_hexdigest(data)}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", **(headers or {})}
    return Response(status_code=304, headers=headers) if has_tag(request, tag) else Response(data, headers=headers, media_type=kind)


def has_tag(request: Request, tag: str) -> bool:
    """Whether the browser has the answer with this ETag in its cache."""
    return tag in (one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(","))


@cache
def _static() -> Mapping[str, bytes]:
    of_explorer = resources.files("flows.serve").joinpath("static")
    shared = {name: asset(name).encode() for name in ("report.css", "view.js")}
    return shared | {name: of_explorer.joinpath(name).read_bytes() for name in ("explore.css", "explore.js", "map.js")}


@cache
def _templates() -> jinja2.Environment:
    environment = templates("flows.serve")
    environment.finalize = lambda value: visible(value) if type(value) is str else value  # no text hides or reorders others; style sheets are Markup
    environment.filters["percent"] = lambda value: "–" if value is None else f"{value:.1%}"
    environment.globals["styles"] = [Markup(style) for style in _styles()]
    return environment


def _styles() -> tuple[str, str]:
    """The style sheet of the reports, and that of the front page."""
    return str(asset("report.css")), resources.files("flows.serve").joinpath("templates", "overview.css").read_text("utf-8")
