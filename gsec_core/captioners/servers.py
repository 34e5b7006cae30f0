"""A server with OpenAI's API, as vLLM has it: one request and its answer, and of which kind a failure is.

What a failure means, and what `chat.Chat` does about it:

=============  ==================================================================  =========================================================
kind           what the server does                                                then
=============  ==================================================================  =========================================================
this image     declines it (400, 413, 422), and answers about a plain picture      a final answer
               fails at it (500, a body of another form, silence) three times,     a final answer
               and answers about a plain picture before and after each
               is gone the third time it is asked, this time about nothing else    a final answer
configuration  does not take the key (401, 403), has no such model or address      the stage ends at once, nothing is logged, exit code 2
               (404), sends on elsewhere, takes no such requests (other 4xx)
               declines the plain picture too
transient      is busy (408, 409, 425, 429, 503)                                   again after waits that grow, `describe.patience` in all
               is gone (no connection, 502, 504), fails at the plain picture too   again when its /health and a plain picture pass; after
                                                                                   `describe.patience` without any server the stage ends, exit
                                                                                   code 1
=============  ==================================================================  =========================================================
"""

import asyncio
import os
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from gsec_core.captioners.template import excerpt
from gsec_core.errors import Refused

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion

KEY = "GSEC_CAPTIONER_KEY"
"""The environment variable with the servers' key."""

NO_KEY = "none"
"""The client wants a key where a server may want none."""

_CONNECT = 10
"""Seconds in which a server takes a connection, or is gone."""


class Kind(Enum):
    """What a failure of one request is, as far as that request tells."""

    DECLINED = auto()
    FAULTY = auto()
    SILENT = auto()
    SETTINGS = auto()
    BUSY = auto()
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
    500: Kind.FAULTY,
    502: Kind.GONE,
    504: Kind.GONE,
}
"""By status. Of others those from 500 on say that the server is gone, and the rest that something is set wrong."""


DECLINING = {status for status, kind in KINDS.items() if kind == Kind.DECLINED}


class Failure(Exception):
    """A request that got no answer."""

    def __init__(self, kind: Kind, said: str, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(said)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""


class Reply(NamedTuple):
    """What came back."""

    text: str
    finish: str | None
    """``stop``, ``length`` if it was cut, ``content_filter``."""
    refusal: str | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Server:
    """One address. Its state is kept by `chat.Chat`; all of it is of one event loop."""

    def __init__(self, url: str, *, key: str, timeout: float) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        self.url = url
        self.under_way = 0
        self.isolated = False
        """Whether a request that it may be lost by is asked alone, or is about to be: then no other begins."""
        self.gone_since: float | None = None
        self.refusal: Refused | None = None
        """What it said when it was back, if it cannot be used as it is set up."""
        self.holds: bool | None = None
        """Whether it holds replies to a pattern; None while nobody has asked."""
        self.asking = asyncio.Lock()
        """Held while it is asked plainly; ``asked_at`` says when that last began, ``plain_failure`` how it failed."""
        self.asked_at = 0.0
        self.plain_failure: Failure | None = None
        self._key = key
        self._client = AsyncOpenAI(
            api_key=key,
            base_url=url,
            max_retries=0,
            timeout=Timeout(timeout, connect=min(_CONNECT, timeout)),
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),  # key and images go to this server and to no other
        )
        # What the environment holds for OpenAI's own service (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS) is not for this server.
        self._client.organization = self._client.project = None
        self._client._custom_headers = {}

    async def complete(self, body: dict[str, Any]) -> Reply:
        """One request, tried once; ``body`` as the API has it. Raises Failure."""
        started = time.monotonic()
        try:
            completion = await self._client.chat.completions.create(**body)
            return _reply(completion, time.monotonic() - started)
        except Exception as error:  # noqa: BLE001 - sorted by kind; what is foreign is raised as it is
            raise self._failure(error) from None

    async def models(self) -> list[str]:
        """What it serves. Raises Failure."""
        try:
            return [str(model.id) async for model in self._client.models.list()]
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failure(error) from None

    async def is_healthy(self) -> bool:
        """Whether it says so, or has no such address and says nothing. vLLM, as it ends, still says so."""
        import openai

        root = urlsplit(self.url)
        try:
            await self._client.get(f"{root.scheme}://{root.netloc}/health", cast_to=object)
        except openai.APIStatusError as error:
            return error.status_code < 500
        except openai.OpenAIError:
            return False
        except ValueError:
            return True  # its body is no JSON, as vLLM's
        return True

    def _failure(self, error: Exception) -> Exception:
        """What goes wrong between here and the server, by its kind. None of it holds the key."""
        import openai

        match error:
            case openai.APITimeoutError():
                return Failure(Kind.SILENT, "the server does not answer: timed out")
            case openai.APIConnectionError():
                return Failure(Kind.GONE, f"the server does not answer ({self._excerpt(error.__cause__ or error)})")
            case openai.APIStatusError():
                status = error.status_code
                kind = KINDS.get(status, Kind.SETTINGS if status < 500 else Kind.GONE)
                return Failure(kind, self._said(error), status, _seconds(error.response.headers.get("retry-after", "")))
            case openai.OpenAIError() | ValueError() | TypeError() | AttributeError() | LookupError():  # the client takes a body of another form as it comes
                return Failure(Kind.FAULTY, "its reply is not of OpenAI's API")
        return error

    def _said(self, error: "openai.APIStatusError") -> str:
        body = error.body
        message = (body.get("message") or body) if isinstance(body, dict) else body
        return self._excerpt(f"{error.status_code}: {message}" if message else error.status_code)

    def _excerpt(self, what: object) -> str:
        return excerpt(str(what).replace(self._key, "***") if self._key != NO_KEY else str(what))


def reply_of(body: object) -> Reply:
    """The reply that a server's JSON is, of unknown duration. Raises ValueError or LookupError if it is none."""
    from openai.types.chat import ChatCompletion

    return _reply(ChatCompletion.model_validate(body), 0.0)


def _reply(completion: "ChatCompletion", seconds: float) -> Reply:
    choice, usage = completion.choices[0], completion.usage
    refusal = choice.message.refusal
    return Reply(
        text=str(choice.message.content or ""),
        finish=choice.finish_reason,
        refusal=excerpt(str(refusal)) if refusal else None,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        seconds=seconds,
    )


def key() -> str:
    """The servers' key, or NO_KEY."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):  # no header can hold it, and the client's complaint would show it
        raise Refused(f"{KEY}: the key holds line breaks or characters that are not ASCII; set it to the key alone.")
    return key or NO_KEY


def checked_urls(urls: str) -> list[str]:
    """The addresses of ``describe.url``, without slashes at their ends. Credentials are refused and not shown: addresses are recorded and printed."""
    found = [url.strip() for url in urls.split(",")]
    if not all(map(_is_good, found)):
        raise Refused(
            f"describe.url: give http://HOST:PORT/v1 or the like, without credentials and query, several with commas between them; the key goes into {KEY}."
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
    """Of a Retry-After header; its other form, a date, is rare and says nothing here."""
    return float(header) if header.isascii() and header.isdigit() else 0.0
