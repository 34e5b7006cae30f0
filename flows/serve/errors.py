"""The answer to a request that failed: the same for pages and for the API."""

import logging
import re
from urllib.parse import quote

from starlette.requests import Request

from flows.serve.collections import Collections, Unfinished
from flows.serve.known import Damaged
from gsec_core.errors import BadRecord, BadShard, GsecError, NotFound, Refused, without_secrets

_OF_RUN = re.compile(r"/runs/([0-9a-f]{32})(?:/|\Z)")

_LOGGED = 200
"""Maximal number of characters of a path in the log."""

_log = logging.getLogger("gsec.serve")


def asked(request: Request) -> str:
    """A request in the log: without its query, and without the Host header."""
    return f"{request.method} {quote(request.scope['path'])[:_LOGGED]}"


def answer(request: Request, error: Exception, collections: Collections) -> tuple[int, str]:
    """HTTP status and sentence for an error. What the user cannot mend is logged, an unforeseen error with its traceback."""
    run = _OF_RUN.search(request.scope["path"])
    if run is not None and isinstance(error, GsecError | OSError) and not isinstance(error, Refused):
        try:
            collections.check_there(run[1])
        except NotFound as gone:
            error = gone
        except (GsecError, OSError):
            pass  # the store does not answer: `error` says so
    if isinstance(error, NotFound):
        return 404, str(error)
    if isinstance(error, Unfinished):
        return 409, str(error)
    if isinstance(error, Refused):
        return 400, str(error)
    if not isinstance(error, GsecError | OSError):
        _log.error("%s", asked(request), exc_info=error)
        return 500, "A fault in gsec; the server's log says more."
    _log.error("%s: %s", asked(request), without_secrets(str(error)))
    if isinstance(error, BadRecord):
        return 500, "A record in the store is damaged; the server's log says which, and what to do."
    if isinstance(error, Damaged | BadShard):
        return 500, "A table or record of this run is damaged; the server's log says which. gsec doctor --verify and the next gsec run mend it."
    return 503, f"The store cannot be read: {type(error).__name__}. The server's log says more."
