"""A client of one server with OpenAI's API, such as vLLM: single requests, their replies, and the kinds of failures.

Meaning of failures, and the reaction of `chat.Chat`:

=============  ==================================================================  =========================================================
kind           what the server does                                                then
=============  ==================================================================  =========================================================
this image     declines it (400, 413, 422), and answers about a plain picture      a final answer
               fails at it (500, 502, 504, a body of another form) three times,    a final answer
               and answers about a plain picture after each
               is silent or gone twice when it is asked among others, and once     a final answer
               more when it is asked alone
configuration  does not take the key (401, 403), has no such model or address      the stage ends at once, nothing is logged, exit code 2
               (404), sends on elsewhere, wants to be paid (402), takes no
               such requests (other 4xx)
               declines the plain picture too
transient      is busy (408, 409, 425, 429, 503, 529)                              less at once, and again after waits that grow; after
                                                                                   `describe.patience` without any answer the stage ends,
                                                                                   exit code 1
               breaks its reply off                                                again after waits that grow; after ten times the stage ends,
                                                                                   exit code 1
               is silent, and answers about a plain picture                        again, with less at once
               is gone (no connection), fails at the plain picture too             again when its /health and a plain picture pass; after
                                                                                   `describe.patience` without any server the stage ends,
                                                                                   exit code 1
=============  ==================================================================  =========================================================

With several servers, a request that fails at one goes to another. It is to blame only if every server fails at it that is not gone, nor busy for
`describe.patience`.
"""

import asyncio
import os
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

from gsec_core.captioners.template import excerpt
from gsec_core.errors import Refused

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion

KEY = "GSEC_CAPTIONER_KEY"
"""Name of the environment variable with the servers' key."""

NO_KEY = "none"
"""Placeholder, since the client requires a key even if the server does not."""

_UNSUPPORTED = re.compile(r"unsupported (?:parameter|value): '(max_tokens|temperature)'", re.IGNORECASE)
"""OpenAI's words about parameters that its newer models do not take. Proxies repeat the words, but not the error's fields."""

_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""Errors in reading a body of another form, which the client does not validate."""

_CONNECT = 10
"""Seconds to wait for a connection; after that the server counts as gone or silent."""


class Kind(Enum):
    """Kind of a failure, as far as it follows from the failed request alone."""

    DECLINED = auto()
    FAULTY = auto()
    SILENT = auto()
    SETTINGS = auto()
    BUSY = auto()
    BROKEN_OFF = auto()
    GONE = auto()


KINDS = {
    400: Kind.DECLINED,
    413: Kind.DECLINED,
    422: Kind.DECLINED,
    408: Kind.BUSY,
    409: Kind.BUSY,
    425: Kind.BUSY,
    429: Kind.BUSY,
    503: Kind.BUSY,
    529: Kind.BUSY,
    500: Kind.FAULTY,
    502: Kind.FAULTY,
    504: Kind.FAULTY,
}
"""Kinds by HTTP status. Other statuses from 500 mean GONE, and the rest SETTINGS."""


_BROKEN_OFF = {"abort", "aborted", "cancelled", "canceled", "error", "interrupted", "insufficient_system_resource"}
"""Finish reasons of replies that ended before the model was done."""


DECLINING = {status for status, kind in KINDS.items() if kind == Kind.DECLINED}


class Failure(Exception):
    """A request was not answered."""

    def __init__(self, kind: Kind, said: str, status: int | None = None, retry_after: float = 0.0, sent: bool = True, unsupported: str | None = None) -> None:
        super().__init__(said)
        self.kind = kind
        self.sent = sent
        """Whether the server received the request, which then may be the cause."""
        self.status = status
        self.retry_after = retry_after
        """Number of seconds that the server asks the client to wait."""
        self.unsupported = unsupported
        """Name of a parameter that the model does not take."""


class Reply(NamedTuple):
    """A server's reply to a chat completion."""

    text: str
    finish: str | None
    """Finish reason: ``stop``, ``length`` if the reply was cut, or ``content_filter``, for instance."""
    reasoned: bool
    """Whether the reply contains reasoning in a separate field, or its reasoning was counted but is not shown."""
    refusal: str | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Server:
    """A client of the server at one address."""

    def __init__(self, url: str, *, key: str, timeout: float) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        self.url = url
        self.setting = f'describe.url = "{url}"'
        self._key = key
        self._timeout = timeout
        self._client = AsyncOpenAI(
            api_key=key,
            base_url=url,
            max_retries=0,
            timeout=Timeout(timeout, connect=min(_CONNECT, timeout)),
            # Key and images go to this server only: not to redirect targets, and not to proxies of the environment.
            http_client=DefaultAsyncHttpxClient(follow_redirects=False, trust_env=False, verify=_certificates()),
        )
        # Environment variables for OpenAI's own service (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS) must not be sent to this server.
        self._client.organization = self._client.project = None
        self._client._custom_headers = {}
        self._unsupported: set[str] = set()

    async def complete(self, body: dict[str, Any]) -> Reply:
        """Send one request, without retries; ``body`` is that of the API. Raises Failure.

        Newer models of OpenAI take ``max_completion_tokens`` instead of ``max_tokens``, and no temperature. If the server says so, the request is sent
        again as it wants, and so are all later ones.
        """
        while True:
            sent = self._supported(body)
            try:
                return await self._complete(sent)
            except Failure as failure:
                if failure.unsupported is None or failure.unsupported not in sent:
                    raise
                self._unsupported.add(failure.unsupported)

    def _supported(self, body: dict[str, Any]) -> dict[str, Any]:
        sent = {name: value for name, value in body.items() if name not in self._unsupported}
        return sent | {"max_completion_tokens": body["max_tokens"]} if "max_tokens" in self._unsupported else sent

    async def _complete(self, body: dict[str, Any]) -> Reply:
        started = time.monotonic()
        async with self._failing_in_our_words():
            completion = await self._client.chat.completions.create(**body)
            reply = _reply(completion, time.monotonic() - started)
            if _is_broken_off(reply):
                raise Failure(Kind.BROKEN_OFF, f"the server broke its reply off ({self._excerpt(reply.finish)})")
            return reply._replace(text=self._masked(reply.text), refusal=reply.refusal and self._masked(reply.refusal))

    async def models(self) -> list[str]:
        """Names of the models that the server has. Raises Failure."""
        async with self._failing_in_our_words():
            return [self._masked(str(model.id)) async for model in self._client.models.list()]

    async def is_healthy(self) -> bool:
        """Whether the server's /health reports so, or does not exist. vLLM still reports health while it shuts down."""
        root = urlsplit(self.url)
        try:
            async with self._failing_in_our_words():
                await self._client.get(f"{root.scheme}://{root.netloc}/health", cast_to=object)
        except Failure as failure:
            # A body that is not JSON, such as vLLM's, is not a failure here.
            return failure.status < 500 if failure.status is not None else failure.kind == Kind.FAULTY
        return True

    @asynccontextmanager
    async def _failing_in_our_words(self) -> AsyncIterator[None]:
        """Turn errors of the client or the connection into a Failure of the right kind, without the key in its message.

        Adds a timeout for the whole request, since the client's timeout applies to each read and a slowly dripping body would never end.
        """
        import openai

        try:
            async with asyncio.timeout(self._timeout):
                yield
        except (TimeoutError, openai.APITimeoutError) as error:
            raise Failure(Kind.SILENT, "the server does not answer: timed out", sent=not _is_connecting(error)) from None
        except openai.APIConnectionError as error:
            said = f"the server does not answer ({self._excerpt(error.__cause__ or error)})"
            raise Failure(Kind.GONE, said, sent=not _is_connecting(error)) from None
        except openai.APIStatusError as error:
            status = error.status_code
            kind = KINDS.get(status, Kind.SETTINGS if status < 500 else Kind.GONE)
            unsupported = _UNSUPPORTED.search(str(error.body))
            retry_after = _seconds(error.response.headers.get("retry-after", ""))
            raise Failure(kind, self._said(error), status, retry_after, unsupported=unsupported[1].lower() if unsupported else None) from None
        except (openai.OpenAIError, *_MALFORMED):
            raise Failure(Kind.FAULTY, "its reply is not of OpenAI's API") from None

    def _said(self, error: "openai.APIStatusError") -> str:
        body = error.body
        message = (body.get("message") or body) if isinstance(body, dict) else body
        return self._excerpt(f"{error.status_code}: {message}" if message else error.status_code)

    def _excerpt(self, what: object) -> str:
        return excerpt(self._masked(str(what)))

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key != NO_KEY else text


def reply_of(body: object) -> Reply:
    """Read a reply from a server's JSON, with duration 0. Raises ValueError if it is not a reply or was broken off."""
    from openai.types.chat import ChatCompletion

    try:
        reply = _reply(ChatCompletion.construct(**cast(Any, body)), 0.0)
    except _MALFORMED as error:
        raise ValueError("not of OpenAI's API") from error
    if _is_broken_off(reply):
        raise ValueError(reply.finish)
    return reply


def _is_broken_off(reply: Reply) -> bool:
    """Whether the server broke the reply off; if asked again, it may complete it."""
    return str(reply.finish).lower() in _BROKEN_OFF


def _reply(completion: "ChatCompletion", seconds: float) -> Reply:
    choice, usage = completion.choices[0], completion.usage
    refusal = choice.message.refusal
    return Reply(
        text=_text(choice.message.content),
        finish=choice.finish_reason,
        reasoned=_reasoning_tokens(usage) > 0 or any((choice.message.model_extra or {}).get(name) for name in ("reasoning_content", "reasoning")),
        refusal=excerpt(str(refusal)) if refusal else None,
        prompt_tokens=_count(usage and usage.prompt_tokens),
        completion_tokens=_count(usage and usage.completion_tokens),
        seconds=seconds,
    )


def _text(content: object) -> str:
    """The text of a message's content, which some servers send in parts. Raises TypeError for another form."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if part["type"] == "text")
    if not isinstance(content, str | None):
        raise TypeError(type(content))
    return content or ""


def _reasoning_tokens(usage: object) -> int:
    return _count(getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", 0))


def _count(said: object) -> int:
    """A number of tokens; 0 for invalid values, which the client does not check."""
    return said if isinstance(said, int) and 0 <= said < 2**31 else 0


def _is_connecting(error: BaseException) -> bool:
    """Whether the error occurred while connecting, before anything was sent."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def _certificates() -> ssl.SSLContext | bool:
    """Certificates in SSL_CERT_FILE, for servers with a self-signed certificate; else the default ones."""
    file = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=file) if file else True


def key() -> str:
    """The servers' key, or NO_KEY. Raises Refused for a key that a header cannot contain."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):  # a header cannot contain it, and the client's error message would show it
        raise Refused(f"{KEY}: the key contains line breaks or non-ASCII characters; set it to the key alone.")
    return key or NO_KEY


def checked_urls(urls: str) -> list[str]:
    """The addresses in ``describe.url``, without trailing slashes. Raises Refused for invalid ones, and for credentials, as addresses are recorded."""
    found = [url.strip() for url in urls.split(",")]
    if not all(map(_is_good, found)):
        raise Refused(
            f"describe.url: give an address such as http://HOST:PORT/v1, without credentials or a query, or several, separated by commas; put "
            f"the key into {KEY}."
        )
    return list(dict.fromkeys(url.rstrip("/") for url in found))


def _is_good(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(
            parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc and not parts.query and not parts.fragment
        )
    except ValueError:
        return False


def _seconds(header: str) -> float:
    """Seconds in a Retry-After header; 0 for its rarer form, a date."""
    return float(header) if header.isascii() and header.isdigit() else 0.0
