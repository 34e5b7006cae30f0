"""The process of `gsec serve`."""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa
import uvicorn

from flows.serve.access import token_of
from flows.serve.app import application
from gsec_core.devices import share_memory
from gsec_core.errors import Refused
from gsec_core.settings import load_config
from gsec_core.store import Store


def serve(urls: Sequence[str], host: str, port: int, curate: bool = False) -> int:
    """Serve until a signal ends the process. ``curate``: whether clusters may be curated.

    Raises Refused if the token is invalid or missing, or if the process cannot listen at this address.
    """
    share_memory()
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's default pool keeps more memory
    token = token_of(os.environ, host)
    by_link = curate and token is None
    if by_link:
        token = secrets.token_urlsafe(24)
    stores = [Store.open(url) for url in urls]
    listening = _listen(host, port)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    server = application(stores, token, load_config(), curate, by_link)  # threads, device and scratch of searches
    config = uvicorn.Config(server, access_log=False, server_header=False, log_config=None, ws="none", proxy_headers=False, timeout_graceful_shutdown=5)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    logging.getLogger("gsec.serve").info("serving %s on %s", ", ".join(store.url for store in stores), address)
    if by_link:
        print(f"Open {address}/?token={token}", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn raises it after an orderly shutdown
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Refused(f"--host {host} --port {port}: it cannot listen there ({why}). Choose another.") from None
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else answers on kept connections take 40 ms; asyncio sets it only on its own sockets
    return listening
