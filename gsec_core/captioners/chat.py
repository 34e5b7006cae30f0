"""A model behind a server with OpenAI's API, as vLLM has it: one request and its answer, and what goes wrong by what it means."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from gsec_core.captioners.template import excerpt
from gsec_core.errors import Refused, Unreachable

if TYPE_CHECKING:
    import openai

KEY = "GSEC_CAPTIONER_KEY"
"""The environment variable with the server's key."""

RETRIES = 5
"""Of one request, after what may pass: lost connections, timeouts, 408, 409, 429, 5xx. The waits double from half a second to eight."""

_NO_KEY = "none"
"""The client wants a key where a server may want none."""


class Declined(Exception):
    """This request will never be answered."""


class Faulty(Exception):
    """The server failed at this request again and again. The request may be at fault, or the server."""


class Reply(NamedTuple):
    """What came back."""

    text: str
    finish: str | None
    """``stop``, ``length`` if it was cut, ``content_filter``."""
    refusal: str | None


class Chat:
    """A model that is asked. ``named`` is the setting that names it, as messages show it: ``describe.captioner = "openai:MODEL"``."""

    def __init__(self, model: str, *, named: str, url: str, timeout: float) -> None:
        from openai import DefaultHttpxClient, OpenAI, Timeout

        self.model = model
        self.named = named
        self._url = checked_url(url)
        self.setting = f'describe.url = "{self._url}"'
        self._key = _key()
        self._client = OpenAI(
            api_key=self._key,
            base_url=self._url,
            max_retries=RETRIES,
            timeout=Timeout(timeout, connect=min(10, timeout)),
            http_client=DefaultHttpxClient(follow_redirects=False),  # key and images go to this server and to no other
        )
        # What the environment holds for OpenAI's own service (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS) is not for this server.
        self._client.organization = self._client.project = None
        self._client._custom_headers = {}

    def check(self) -> None:
        """Raises Refused unless the server lists the model, Unreachable if it does not answer."""
        try:
            with self._in_our_words():
                served = [str(model.id) for model in self._client.models.list()]
        except (Declined, Faulty) as error:
            raise Refused(
                f"{self.setting} does not list its models ({error}): give the address of OpenAI's API on the server; it mostly ends in /v1."
            ) from None
        if self.model not in served:
            listed = ", ".join(excerpt(name) for name in served[:20]) or "none"
            raise Refused(f"{self.named}: {self._url} has no such model; its models are: {listed}.")

    def ask(self, content: Any, temperature: float, max_tokens: int, pattern: str | None = None) -> Reply:
        """One request. ``content`` is a user's message as the API has it; ``pattern`` a regular expression that the reply is to be held to.

        vLLM does that. Other servers decline such a request, or take it and do not.

        Raises Declined, Faulty, Refused if nothing will ever be answered as it is set up, Unreachable if nothing is for now.
        """
        with self._in_our_words():
            completion = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                temperature=temperature,
                max_tokens=max_tokens,
                extra_body=None if pattern is None else {"structured_outputs": {"regex": pattern}},
            )
            choice = completion.choices[0]
            refusal = choice.message.refusal
            return Reply(str(choice.message.content or ""), choice.finish_reason, excerpt(str(refusal)) if refusal else None)

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """What goes wrong between here and the server, the client's own retries included, by what it means. None of it holds the key."""
        import openai

        try:
            yield
        except openai.APIConnectionError as error:
            raise Unreachable(f"{self.setting}: the server does not answer ({self._excerpt(error.__cause__ or error)}).") from None
        except openai.APIStatusError as error:
            raise self._meaning(error.status_code, self._said(error)) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):  # the client takes a body of another form as it comes
            raise Faulty("its reply is not of OpenAI's API") from None

    def _meaning(self, status: int, said: str) -> Exception:
        if status in (400, 413, 422):
            return Declined(said)
        if status == 500:
            return Faulty(said)
        if status in (408, 409, 429) or status > 500:
            return Unreachable(f"{self.setting}: the server answers {said}.")
        if status in (401, 403):
            what = "the key in" if self._key != _NO_KEY else "requests without a key; put it into"
            return Refused(f"{self.setting}: the server does not take {what} {KEY} ({said}).")
        if status == 404:
            return Refused(
                f"{self.setting}: the server has no model {self.model}, or there is no OpenAI API at this address, which mostly ends in /v1 ({said})."
            )
        if status < 400:
            return Refused(f"{self.setting}: the server sends on to another address ({status}), where its key does not go; give the final address.")
        return Refused(f"{self.setting}: the server takes no such requests ({said}); it must have OpenAI's chat completions.")

    def _said(self, error: "openai.APIStatusError") -> str:
        body = error.body
        message = (body.get("message") or body) if isinstance(body, dict) else body
        return self._excerpt(f"{error.status_code}: {message}" if message else error.status_code)

    def _excerpt(self, what: object) -> str:
        return excerpt(str(what).replace(self._key, "***") if self._key != _NO_KEY else str(what))


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):  # no header can hold it, and the client's complaint would show it
        raise Refused(f"{KEY}: the key holds line breaks or characters that are not ASCII; set it to the key alone.")
    return key or _NO_KEY


def checked_url(url: str) -> str:
    """Without a slash at its end. Credentials are refused and not shown: addresses are recorded and printed."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise Refused(f"describe.url: give http://HOST:PORT/v1 or the like, without credentials and query; the server's key goes into {KEY}.")
    return url.rstrip("/")
