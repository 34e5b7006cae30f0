"""Who may send a request: the token, the login by a link, and the user's name."""

import base64
import binascii
import hmac
import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from gsec_core.errors import Refused

TOKEN = "GSEC_REPORTS_TOKEN"
"""Environment variable with the token."""

NOBODY = "browser"
"""Author of an act if the browser sends no user name."""


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address or `localhost`, which always mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def token_of(environment: Mapping[str, str], host: str) -> str | None:
    """The token that requests must send, from the environment; None if there is none.

    Raises Refused if browsers cannot send the token, or if there is none and ``host`` can be reached from other machines.
    """
    token = environment.get(TOKEN)
    if token == "":
        raise Refused(f"{TOKEN}: it is empty. Give it a long random text, or unset it.")
    if token is not None and token != token.strip():
        raise Refused(f"{TOKEN}: it begins or ends with white space, which no browser sends. Remove the white space.")
    if token is None and not is_loopback(host):
        raise Refused(f"host = {host}: other machines are served only with a token. Set {TOKEN}, or leave host out.")
    return token


def refusal(token: str | None, request: Request) -> Response | None:
    """The answer that refuses a request, or None if the request is allowed."""
    if token is None:
        # Any page in a browser on this machine can send requests here. If its own host name resolved to this address, it could also read the answers.
        if is_loopback(_host(request.headers.get("host", "localhost"))):
            return _refusal_of_other_pages(request)
        return PlainTextResponse(f"Without a token this server answers only to 127.0.0.1, [::1] and localhost. Set {TOKEN}, or send such a Host.\n", 421)
    name, value = _cookie(token)
    if hmac.compare_digest(_credentials(request)[1], os.fsencode(token)) or hmac.compare_digest(request.cookies.get(name, "").encode(), value.encode()):
        return _refusal_of_other_pages(request)
    challenge = {"WWW-Authenticate": 'Basic realm="gsec", charset="UTF-8"'}
    return PlainTextResponse("This needs the token: as a bearer token, or as a password with any user name.\n", 401, challenge)


def login(token: str | None, request: Request) -> Response | None:
    """Answer to an address with the right ``?token=``: a redirect to the same path without a query that sets a cookie; else None."""
    given = request.query_params.get("token")
    if token is None or given is None or not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode("utf-8", "surrogateescape")):
        return None
    path = request.scope["path"]
    response = RedirectResponse("/" if path.startswith("//") else quote(path), 303)
    name, value = _cookie(token)
    response.set_cookie(name, value, httponly=True, samesite="strict")
    return response


def who_asks(request: Request) -> str:
    """The user name that the browser sends with the token (HTTP Basic), else `NOBODY`."""
    try:
        return _credentials(request)[0].decode().strip() or NOBODY
    except UnicodeDecodeError:
        return NOBODY


def _cookie(token: str) -> tuple[str, str]:
    """Name and value of the cookie that stands for the token. The name depends on the token, because servers on all ports of a host share their cookies."""
    value = hmac.digest(os.fsencode(token), b"cookie", "sha256").hex()
    return f"gsec-{value[:8]}", value[8:]


def _refusal_of_other_pages(request: Request) -> Response | None:
    """Refuse a changing request that a page of another server made a browser send: the browser adds the login by itself. None if it is allowed.

    Programs send no header that tells the origin, and are allowed.
    """
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


def _credentials(request: Request) -> tuple[bytes, bytes]:
    """The user name and the token that a request sends, by HTTP Basic or as a bearer token. Both are empty if it sends neither."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    given = rest.strip(" ").encode("latin-1")  # the bytes that were sent
    if scheme.lower() == "bearer":
        return b"", given
    try:
        user, _, token = base64.b64decode(given if scheme.lower() == "basic" else b"", validate=True).partition(b":")
    except binascii.Error:
        return b"", b""
    return user, token
