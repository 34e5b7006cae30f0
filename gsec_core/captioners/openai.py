"""A multimodal model behind a server with OpenAI's API, as vLLM has it.

One request an image, so that a bad image fails alone. The prompt stands before the image, so that a server can reuse what
it has computed of it.
"""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from PIL import Image

from gsec_core import images
from gsec_core.captioners import template
from gsec_core.captioners.base import Answer, Subject
from gsec_core.captioners.template import PROMPT, excerpt, failed, parse
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused, Unreachable
from gsec_core.sources.base import RejectedImage
from gsec_core.tables import DESCRIBED, FAILED, FREE

if TYPE_CHECKING:
    import openai

KEY = "GSEC_CAPTIONER_KEY"
"""The environment variable with the server's key."""

RETRIES = 5
"""Of one request, after what may pass: lost connections, timeouts, 408, 409, 429, 5xx. The waits double from half a second to eight."""

TEMPERATURE, SECOND_TEMPERATURE = 0.0, 0.7
"""The second is for asking again, when the first would give the same reply."""

VERSION = 1
"""Raised when the same image is asked about otherwise in a way that `openai_identity` does not show."""

_NO_KEY = "none"
"""The client wants a key where a server may want none."""

_BEST_FIRST = (DESCRIBED, FREE, FAILED)


class _Declined(Exception):
    """This request will never be answered."""


class _Faulty(Exception):
    """The server failed at this request again and again. The image may be at fault, or the server."""


class OpenAICaptioner:
    """Asks about an image once, and once more if the reply is not in the template; the better reply counts, the first of equals."""

    def __init__(self, model: str, config: DescribeConfig) -> None:
        from openai import DefaultHttpxClient, OpenAI, Timeout

        self.model = model
        self.concurrency = config.concurrency
        self._url = _checked_url(config.url)
        self._setting = f'describe.url = "{self._url}"'
        self._key = _key()
        self._image_size = config.image_size
        self._max_tokens = config.max_tokens
        self._client = OpenAI(
            api_key=self._key,
            base_url=self._url,
            max_retries=RETRIES,
            timeout=Timeout(config.timeout, connect=min(10, config.timeout)),
            http_client=DefaultHttpxClient(follow_redirects=False),  # key and images go to this server and to no other
        )
        # What the environment holds for OpenAI's own service (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS) is not for this server.
        self._client.organization = self._client.project = None
        self._client._custom_headers = {}

    def check(self) -> None:
        """Raises Refused unless the server is there, takes the key, has the model, and answers when asked about a plain picture."""
        try:
            with self._in_our_words():
                served = [str(model.id) for model in self._client.models.list()]
            if self.model not in served:
                listed = ", ".join(excerpt(name) for name in served[:20]) or "none"
                raise Refused(f'describe.captioner = "openai:{self.model}": {self._url} has no such model; its models are: {listed}.')
            self._ask_about_plain_picture()
        except Unreachable as error:
            raise Refused(f"{error} Start the server, or correct the address.") from None
        except (_Declined, _Faulty) as error:
            raise Refused(
                f"{self._setting} does not list its models ({error}): give the address of OpenAI's API on the server; it mostly ends in /v1."
            ) from None

    def describe(self, subject: Subject) -> Answer:
        """FAILED is what cannot be decoded, what the server declines, and what it fails at while it still answers for other images."""
        try:
            image = self._data_url(images.decode(subject.read()))
            first = self._ask(image, TEMPERATURE)
            if first.status == DESCRIBED:
                return first
            second = self._ask(image, SECOND_TEMPERATURE)
        except (RejectedImage, _Declined) as error:
            return failed(str(error))
        return min(first, second, key=lambda answer: _BEST_FIRST.index(answer.status))

    def _ask(self, image: str, temperature: float) -> Answer:
        try:
            return self._request(image, temperature)
        except _Faulty:
            # A server that is going down fails at everything, and answers about its health until its end.
            self._ask_about_plain_picture()
        try:
            return self._request(image, temperature)
        except _Faulty as error:
            raise _Declined(f"the server fails at this image, though not at others: {error}") from None

    def _ask_about_plain_picture(self) -> None:
        """Raises Refused or Unreachable if the server does not answer even that: a text-only model, too short a context, an engine that died."""
        try:
            self._request(self._plain_picture, TEMPERATURE)
        except _Declined as error:
            raise Refused(
                f'describe.captioner = "openai:{self.model}": the server declines any image ({error}). Name a model that reads images, '
                "let the server allow longer prompts, or lower describe.image_size or describe.max_tokens."
            ) from None
        except _Faulty as error:
            raise Unreachable(f"{self._setting}: the server fails at any image ({error}).") from None

    def _request(self, image: str, temperature: float) -> Answer:
        with self._in_our_words():
            completion = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": image}}]}],
                temperature=temperature,
                max_tokens=self._max_tokens,
            )
            choice = completion.choices[0]
            finish, text, refusal = choice.finish_reason, str(choice.message.content or ""), choice.message.refusal
        if refusal:
            return failed(f"the model refuses: {excerpt(str(refusal))}")
        if finish == "content_filter":
            return failed("the server's content filter held the reply back")
        answer = parse(text)
        return self._cut(answer) if finish == "length" else answer

    def _cut(self, answer: Answer) -> Answer:
        """A reply that met its bound: its last attribute counts only if the sentence was finished, its text always says something."""
        if answer.status == FAILED:
            return answer._replace(reason=f"{answer.reason}, and cut at describe.max_tokens = {self._max_tokens}")
        if answer.status == DESCRIBED and not (answer.text or "").endswith((".", "!", "?")):
            return Answer(answer.text, None, (), FREE)
        return answer

    def _data_url(self, image: Image.Image) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(images.thumbnail(image, self._image_size)).decode()}"

    @cached_property
    def _plain_picture(self) -> str:
        """Grey, as large as images are sent, so that a prompt which is too long for the model shows with it."""
        return self._data_url(Image.new("RGB", (self._image_size, self._image_size), "grey"))

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """What goes wrong between here and the server, the client's own retries included, by what it means. None of it holds the key."""
        import openai

        try:
            yield
        except openai.APIConnectionError as error:
            raise Unreachable(f"{self._setting}: the server does not answer ({self._excerpt(error.__cause__ or error)}).") from None
        except openai.APIStatusError as error:
            raise self._meaning(error.status_code, self._said(error)) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):  # the client takes a body of another form as it comes
            raise _Faulty("its reply is not of OpenAI's API") from None

    def _meaning(self, status: int, said: str) -> Exception:
        if status in (400, 413, 422):
            return _Declined(said)
        if status == 500:
            return _Faulty(said)
        if status in (408, 409, 429) or status > 500:
            return Unreachable(f"{self._setting}: the server answers {said}.")
        if status in (401, 403):
            what = "the key in" if self._key != _NO_KEY else "requests without a key; put it into"
            return Refused(f"{self._setting}: the server does not take {what} {KEY} ({said}).")
        if status == 404:
            return Refused(
                f"{self._setting}: the server has no model {self.model}, or there is no OpenAI API at this address, which mostly ends in /v1 ({said})."
            )
        if status < 400:
            return Refused(f"{self._setting}: the server sends on to another address ({status}), where its key does not go; give the final address.")
        return Refused(f"{self._setting}: the server takes no such requests ({said}); it must have OpenAI's chat completions.")

    def _said(self, error: "openai.APIStatusError") -> str:
        body = error.body
        message = (body.get("message") or body) if isinstance(body, dict) else body
        return self._excerpt(f"{error.status_code}: {message}" if message else error.status_code)

    def _excerpt(self, what: object) -> str:
        return excerpt(str(what).replace(self._key, "***") if self._key != _NO_KEY else str(what))


def openai_identity(model: str, config: DescribeConfig) -> dict[str, object]:
    """What is asked for; the server is whoever answers. Raises Refused for an address that cannot be one."""
    _checked_url(config.url)
    return {
        "name": f"openai:{model}",
        "version": VERSION,
        "template": template.VERSION,
        "prompt": PROMPT,
        "temperatures": [TEMPERATURE, SECOND_TEMPERATURE],
        "max_tokens": config.max_tokens,
        "image_size": config.image_size,
    }


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):  # no header can hold it, and the client's complaint would show it
        raise Refused(f"{KEY}: the key holds line breaks or characters that are not ASCII; set it to the key alone.")
    return key or _NO_KEY


def _checked_url(url: str) -> str:
    """Without a slash at its end. Credentials are refused and not shown: addresses are recorded and printed."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise Refused(f"describe.url: give http://HOST:PORT/v1 or the like, without credentials and query; the server's key goes into {KEY}.")
    return url.rstrip("/")
