"""A proxy before moto's S3 server that is slow, throttles and loses connections, and that counts the requests."""

import asyncio
import logging
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from uuid import uuid4

import boto3
import pytest
import s3fs
from aiohttp import ClientSession, TCPConnector, web
from moto.server import ThreadedMotoServer
from yarl import URL

KINDS = ("GET", "PUT", "HEAD", "LIST", "DELETE", "multipart")
"""Kinds of requests. The beginning, the parts and the end of a multipart upload all count as "multipart"."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "host"}

_SLOW_DOWN = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

_EXPIRED = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class S3Proxy:
    """Passes requests on to a server.

    ``counts`` has the requests by kind, including failed ones; ``failed`` has those to which the server's own answer was not given. Which requests
    fail is drawn with ``seed``, in the order in which they come.
    """

    def __init__(self, upstream: str, *, delay: float = 0.0, slow_down: float = 0.0, reset: float = 0.0, seed: int = 0) -> None:
        self.delay = delay
        """Seconds before each answer."""
        self.slow_down = slow_down
        """Share of the requests that are answered 503 SlowDown, half of them after they were carried out."""
        self.reset = reset
        """Share of the requests whose connection is reset, half of them after the request was carried out, so that its reply is lost."""
        self.expired = False
        """Whether all requests are answered 403 ExpiredToken."""
        self.counts: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        """Bytes of the answers, by kind of request."""
        self.paths: list[str] = []
        """Paths of the requests, with their queries."""
        self.losing: dict[str, int] = {}
        """Kinds of requests of which one will lose its reply -> how many of that kind pass before it."""
        self.upstream = upstream
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3-proxy", daemon=True)

    def start(self) -> str:
        """Start the proxy and return its address."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def count(self) -> dict[str, int]:
        """Requests by kind since the last count."""
        found = {kind: self.counts[kind] for kind in KINDS}
        self.counts.clear()
        return found

    async def _start(self) -> str:
        self._session = ClientSession(auto_decompress=False, connector=TCPConnector(limit=0))
        application = web.Application(client_max_size=0)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _stop(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        kind = kind_of(request)
        body = await request.read()
        self.counts[kind] += 1
        self.paths.append(request.raw_path)
        drawn, carried_out = self._random.random(), self._random.random() < 0.5
        resets, throttles = drawn < self.reset, self.reset <= drawn < self.reset + self.slow_down
        if kind in self.losing:
            self.losing[kind] -= 1
            if self.losing[kind] < 0:
                del self.losing[kind]
                resets = carried_out = True
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.expired:
            return web.Response(status=403, body=None if request.method == "HEAD" else _EXPIRED, content_type="application/xml")
        answer = await self._pass_on(request, body) if carried_out or not (resets or throttles) else None
        if resets:
            self.failed[kind] += 1
            _reset(request)
        elif throttles:
            self.failed[kind] += 1
            answer = web.Response(status=503, body=_SLOW_DOWN, content_type="application/xml")
        elif answer is not None and request.method != "HEAD" and isinstance(answer.body, bytes):
            self.bytes[kind] += len(answer.body)
        return answer or web.Response(status=500)

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        url = URL(f"{self.upstream}{request.raw_path}", encoded=True)
        async with self._session.request(request.method, url, headers=_passed(request.headers), data=body or None) as found:
            return web.Response(status=found.status, headers=_passed(found.headers), body=await found.read() or None)


def kind_of(request: web.BaseRequest) -> str:
    """One of KINDS, or the HTTP method for any other request."""
    if "uploads" in request.query or "uploadId" in request.query:
        return "multipart"
    if request.method == "GET" and ("list-type" in request.query or request.path.count("/") == 1):
        return "LIST"
    return "DELETE" if "delete" in request.query else request.method


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}


def _reset(request: web.BaseRequest) -> None:
    """End the connection by RST, as if the other machine had gone."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


@contextmanager
def s3_behind_proxy(**faults: float) -> Iterator[tuple[str, S3Proxy]]:
    """The URL of a new bucket on a server of its own, and the proxy before it; ``faults`` are the arguments of `S3Proxy`.

    The environment variables of this process and its children make them use the proxy as S3.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would log each request to stderr
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = S3Proxy(f"http://{host}:{port}", **faults)  # type: ignore[arg-type]
    credentials = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (credentials | {"AWS_ENDPOINT_URL": proxy.start()}).items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # a cached instance would go on talking to an earlier server
        name = f"bucket-{uuid4().hex}"
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=name)
        try:
            yield f"s3://{name}", proxy
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            proxy.stop()
            server.stop()
