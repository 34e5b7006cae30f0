"""A multimodal model behind a server with OpenAI's API, as vLLM has it.

One request an image, so that a bad image fails alone. The prompt stands before the image, so that a server can reuse what
it has computed of it.
"""

import base64
import re
import threading
from functools import cached_property

from PIL import Image

from gsec_core import images
from gsec_core.captioners import template
from gsec_core.captioners.base import Answer, Subject
from gsec_core.captioners.chat import Chat, Declined, Faulty, checked_url
from gsec_core.captioners.template import SENTENCE_PATTERN, failed, parse, prompt
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused, Unreachable
from gsec_core.sources.base import RejectedImage
from gsec_core.tables import DESCRIBED, FAILED, FREE

TEMPERATURE, SECOND_TEMPERATURE = 0.0, 0.7
"""The second is for asking again, when the first would give the same reply."""

VERSION = 1
"""Raised when the same image is asked about otherwise in a way that `openai_identity` does not show."""

_BEST_FIRST = (DESCRIBED, FREE, FAILED)


class OpenAICaptioner:
    """Asks about an image once, and once more if the reply is not in the template; the better reply counts, the first of equals."""

    def __init__(self, model: str, config: DescribeConfig) -> None:
        self.model = model
        self.concurrency = config.concurrency
        self._chat = Chat(model, named=f'describe.captioner = "openai:{model}"', url=config.url, timeout=config.timeout)
        self._held: bool | None = None
        self._holding = threading.Lock()
        self._prompt = prompt(config.criterion)
        self._image_size = config.image_size
        self._max_tokens = config.max_tokens

    @property
    def form(self) -> str:
        return "held to the template by the server" if self._server_holds_template() else "by the prompt alone: the server does not hold replies to a pattern"

    def check(self) -> None:
        """Raises Refused unless the server is there, takes the key, has the model, and answers when asked about a plain picture."""
        try:
            self._chat.check()
            self._ask_about_plain_picture()
        except Unreachable as error:
            raise Refused(f"{error} Start the server, or correct the address.") from None

    def describe(self, subject: Subject) -> Answer:
        """FAILED is what cannot be decoded, what the server declines, and what it fails at while it still answers for other images."""
        try:
            image = self._data_url(images.decode(subject.read()))
            first = self._ask(image, TEMPERATURE)
            if first.status == DESCRIBED:
                return first
            second = self._ask(image, SECOND_TEMPERATURE)
        except (RejectedImage, Declined) as error:
            return failed(str(error))
        return min(first, second, key=lambda answer: _BEST_FIRST.index(answer.status))

    def _ask(self, image: str, temperature: float) -> Answer:
        try:
            return self._request(image, temperature)
        except Faulty:
            # A server that is going down fails at everything, and answers about its health until its end.
            self._ask_about_plain_picture()
        try:
            return self._request(image, temperature)
        except Faulty as error:
            raise Declined(f"the server fails at this image, though not at others: {error}") from None

    def _ask_about_plain_picture(self) -> None:
        """Raises Refused or Unreachable if the server does not answer even that: a text-only model, too short a context, an engine that died."""
        try:
            self._request(self._plain_picture, TEMPERATURE)
        except Declined as error:
            raise Refused(
                f"{self._chat.named}: the server declines any image ({error}). Name a model that reads images, "
                "let the server allow longer prompts, or lower describe.image_size or describe.max_tokens."
            ) from None
        except Faulty as error:
            raise Unreachable(f"{self._chat.setting}: the server fails at any image ({error}).") from None

    def _server_holds_template(self) -> bool:
        """Found out once, by a plain picture. Raises Refused and Unreachable as `describe`."""
        with self._holding:
            if self._held is None:
                try:
                    reply = self._chat.ask(self._content(self._plain_picture), TEMPERATURE, self._max_tokens, SENTENCE_PATTERN)
                    self._held = re.fullmatch(SENTENCE_PATTERN, reply.text) is not None
                except (Declined, Faulty):
                    self._held = False  # whether it answers at all is asked next
            return self._held

    def _content(self, image: str) -> list[dict[str, object]]:
        """The text first: what a server has computed of it serves for every image."""
        return [{"type": "text", "text": self._prompt}, {"type": "image_url", "image_url": {"url": image}}]

    def _request(self, image: str, temperature: float) -> Answer:
        pattern = SENTENCE_PATTERN if self._server_holds_template() else None
        reply = self._chat.ask(self._content(image), temperature, self._max_tokens, pattern)
        if reply.refusal:
            return failed(f"the model refuses: {reply.refusal}")
        if reply.finish == "content_filter":
            return failed("the server's content filter held the reply back")
        answer = parse(reply.text)
        return self._cut(answer) if reply.finish == "length" else answer

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


def openai_identity(model: str, config: DescribeConfig) -> dict[str, object]:
    """What is asked for; the server is whoever answers. Raises Refused for an address that cannot be one."""
    checked_url(config.url)
    return {
        "name": f"openai:{model}",
        "version": VERSION,
        "template": template.VERSION,
        "prompt": prompt(config.criterion),
        "temperatures": [TEMPERATURE, SECOND_TEMPERATURE],
        "max_tokens": config.max_tokens,
        "image_size": config.image_size,
    }
