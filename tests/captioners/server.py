"""A fake server with OpenAI's API on a real socket, which can be made to misbehave."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from gsec_core.captioners import Captioner, load_captioner
from gsec_core.config import DescribeConfig

from .examples import GOOD

SECRET = "sk-4f9a8b7c6d5e"
OTHER_SECRET = "sk-of-another-service"


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def picture(self) -> Image.Image:
        header, data = self.body["messages"][0]["content"][1]["image_url"]["url"].split(",")
        assert header == "data:image/jpeg;base64"
        return Image.open(io.BytesIO(base64.b64decode(data)))

    @property
    def pattern(self) -> str | None:
        """The pattern that the reply must match, if the request has one."""
        found: str | None = self.body.get("structured_outputs", {}).get("regex")
        return found

    @property
    def is_plain(self) -> bool:
        """Whether the request only checks the server: it has a plain grey picture, or asks for a yes."""
        if isinstance(content := self.body["messages"][0]["content"], str):
            return content == "Say yes."
        return self.picture.convert("RGB").getcolors(1) is not None and self.picture.getpixel((0, 0)) == (128, 128, 128)


class Response(NamedTuple):
    status: int
    """The HTTP status; 0 means that the connection ends without an answer."""
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})
    drip: float = 0.0
    """Seconds between the bytes of the body."""


def as_json(body: object, status: int = 200) -> Response:
    return Response(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def error(status: int, message: str = "as told") -> Response:
    return as_json({"error": {"message": message, "type": "x", "code": status}}, status)


GONE = Response(0, b"")


def reply(text: object = GOOD, finish: str = "stop", refusal: str | None = None, prompt_tokens: object = 30) -> Response:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return as_json(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "tiny",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 12, "total_tokens": 42},
        }
    )


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Ignore the error: the client has given up."""


class Server:
    """Answers every picture with ``GOOD``, or by ``answer``; lists ``models``; reports that it is ``healthy``."""

    def __init__(self, port: int = 0) -> None:
        self.healthy = True
        self.at_once = self.most_at_once = 0
        """How many requests about pictures that are not plain are under way now, and were at most."""
        self._counting = threading.Lock()
        self.requests: list[Request] = []
        self.models: Callable[[Request], Response] = lambda request: as_json({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
        self.probe: Callable[[Request], Response] = lambda request: error(400, "structured_outputs: Extra inputs are not permitted")
        """Answers requests with a plain picture and a pattern; these are recorded in ``probes`` and not in ``requests``."""
        self.probes: list[Request] = []
        self.answer: Callable[[Request], Response] = lambda request: reply()
        self._http = _Http(("127.0.0.1", port), self._handler())
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def says(self, *responses: Response | str) -> None:
        """Answer the next requests about pictures that are not plain with these responses, and all later ones with the last."""
        left = [reply(response) if isinstance(response, str) else response for response in responses]
        self.answer = lambda request: reply() if request.is_plain else left.pop(0) if len(left) > 1 else left[0]

    @property
    def asked(self) -> list[Request]:
        """The requests about pictures that are not plain."""
        return [request for request in self.requests if request.method == "POST" and not request.is_plain]

    @contextmanager
    def _under_way(self, request: Request) -> Iterator[None]:
        counts = request.method == "POST" and not request.is_plain
        with self._counting:
            self.at_once += counts
            self.most_at_once = max(self.most_at_once, self.at_once)
        yield
        with self._counting:
            self.at_once -= counts

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._respond(None)

            def do_POST(self) -> None:
                self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _respond(self, body: Any) -> None:
                request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                probe = request.method == "POST" and request.pattern is not None and request.is_plain
                if request.path != "/health":
                    (server.probes if probe else server.requests).append(request)
                known = {
                    ("GET", "/health"): lambda _: Response(200 if server.healthy else 503, b""),
                    ("GET", "/v1/models"): server.models,
                    ("POST", "/v1/chat/completions"): server.probe if probe else server.answer,
                }
                with server._under_way(request):
                    status, data, headers, drip = known.get((self.command, self.path), lambda _: error(404))(request)
                if not status:
                    self.close_connection = True
                    return
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for byte in data if drip else ():
                        self.wfile.write(bytes([byte]))
                        time.sleep(drip)
                    self.wfile.write(b"" if drip else data)
                except ConnectionError:  # the client has given up
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def captioner(*servers: Server, **settings: Any) -> Captioner:
    """A captioner that asks these servers. It has the patience for a busy machine, unless a test is about the end of it."""
    settings = {"url": ",".join(server.url for server in servers), "patience": 120, **settings}
    return load_captioner(DescribeConfig(captioner="openai:tiny", **settings), device="cpu", threads=1)
