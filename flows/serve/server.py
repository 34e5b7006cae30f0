"""The process that serves."""

import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence

import uvicorn

from flows.serve.app import TOKEN, application, is_loopback
from gsec_core.errors import Refused
from gsec_core.store import Store


def serve(urls: Sequence[str], host: str, port: int) -> int:
    """Serve until a signal ends it. Raises Refused if it may not, or cannot, listen there."""
    token = token_of(os.environ, host)
    stores = [Store.open(url) for url in urls]
    listening = _listen(host, port)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    config = uvicorn.Config(
        application(stores, token), access_log=False, server_header=False, log_config=None, ws="none", proxy_headers=False, timeout_graceful_shutdown=5
    )
    address = f"[{host}]" if ":" in host else host
    logging.getLogger("gsec.serve").info("serving %s on http://%s:%d", ", ".join(store.url for store in stores), address, listening.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def token_of(environment: Mapping[str, str], host: str) -> str | None:
    """What whoever asks has to send. Raises Refused if it is none that can be sent, or if there has to be one."""
    token = environment.get(TOKEN)
    if token == "":
        raise Refused(f"{TOKEN}: it is empty. Give it a long random text, or unset it.")
    if token is not None and token != token.strip():
        raise Refused(f"{TOKEN}: white space stands before or after it, which no browser sends. Take that away.")
    if token is None and not is_loopback(host):
        raise Refused(f"host = {host}: beyond this machine the reports are served only with a token. Set {TOKEN}, or leave host out.")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Refused(f"--host {host} --port {port}: it cannot listen there ({why}). Choose another.") from None
