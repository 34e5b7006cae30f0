"""A multimodal model behind servers with OpenAI's API, such as vLLM.

Each image has a separate request, so that a bad image fails alone. The prompt comes before the image, so that a server can reuse
its computation of the prompt.
"""

import asyncio
import base64
from functools import reduce
from typing import Any

from PIL import Image

from gsec_core.captioners import background, template
from gsec_core.captioners.base import Answer, Cost, Subject
from gsec_core.captioners.chat import Chat, Declined, Probe, is_only_reasoning
from gsec_core.captioners.servers import Reply, checked_urls
from gsec_core.captioners.template import ONLY_REASONING, failed
from gsec_core.config import DescribeConfig
from gsec_core.images import decode as images
from gsec_core.sources.base import RejectedImage
from gsec_core.tables import DESCRIBED, FAILED, FREE

TEMPERATURE, SECOND_TEMPERATURE = 0.0, 0.7
"""The second temperature is for asking again, since the first would give the same reply."""

MOST_RATIO = 8
"""Images with a larger aspect ratio are padded with white, since models do not accept strips of a pixel or two."""

VERSION = 2
"""Increased when requests change in a way that `openai_identity` does not show."""

_BEST_FIRST = (DESCRIBED, FREE, FAILED)


class OpenAICaptioner:
    """Asks about an image once, and once more if the reply does not follow the template; uses the better reply, or the first if both are equally good."""

    def __init__(self, model: str, config: DescribeConfig) -> None:
        self.model = model
        self._template = template.load(config)
        self._image_size = config.image_size
        self._max_tokens = config.max_tokens
        # A grey image of full size, so that the probe shows whether prompt and image are too long for the model.
        plain = _data_url(Image.new("RGB", (config.image_size, config.image_size), "grey"), config.image_size)
        probe = Probe(
            _content(self._template.prompt, plain),
            config.max_tokens,
            "Name a model that reads images, let the server allow longer prompts, or lower describe.image_size or describe.max_tokens.",
            more_tokens=f", or raise describe.max_tokens = {config.max_tokens}",
            pattern=self._template.server_pattern,
            off_topic=_content("Say yes.", plain),
        )
        self._chat = Chat(model, named=f'describe.captioner = "openai:{model}"', config=config, probe=probe)
        self.concurrency = self._chat.in_hand

    @property
    def form(self) -> str:
        if self._chat.holds == {True}:
            return "enforced by the server"
        if self._chat.holds == {True, False}:
            return "enforced by some of the servers, asked for by the prompt alone at the others"
        return "asked for by the prompt alone: the server does not enforce a pattern"

    def check(self) -> None:
        """Raises Refused unless at least one server has the model and answers about a plain picture, and none is set up wrongly."""
        background.start(self._chat.check()).result()

    async def describe(self, subject: Subject) -> Answer:
        """See `Captioner.describe`. FAILED: images that cannot be decoded, that the server declines, or at which it fails while it still answers for others."""
        try:
            content = await asyncio.to_thread(self._content, subject)
        except RejectedImage as error:
            return failed(str(error))
        answers: list[Answer] = []
        try:
            for temperature in (TEMPERATURE, SECOND_TEMPERATURE):
                answers.append(self.read(await self._chat.ask(content, temperature, self._max_tokens)))
                if answers[-1].status == DESCRIBED:
                    break
        except Declined as error:
            answers.append(failed(str(error)))
        costs = [answer.cost for answer in answers if answer.cost is not None]
        return min(answers, key=lambda answer: _BEST_FIRST.index(answer.status))._replace(cost=reduce(Cost.plus, costs) if costs else None)

    def request(self, subject: Subject) -> dict[str, Any]:
        """Body of the first request about an image, with the template's pattern. Raises RejectedImage, and what ``subject.read`` raises."""
        body = self._chat.body(self._content(subject), TEMPERATURE, self._max_tokens, held=True)
        held: dict[str, Any] = body.pop("extra_body")
        return body | held

    def read(self, reply: Reply) -> Answer:
        """Read a reply as an answer, with its cost."""
        return self._answer(reply)._replace(cost=Cost(1, reply.prompt_tokens, reply.completion_tokens, reply.seconds))

    def _answer(self, reply: Reply) -> Answer:
        if reply.refusal:
            return failed(f"the model refuses: {reply.refusal}")
        if reply.finish == "content_filter":
            return failed("the server's content filter held the reply back")
        answer = failed(ONLY_REASONING) if is_only_reasoning(reply) else self._template.read(reply.text)
        return self._cut(answer) if reply.finish == "length" else answer

    def _cut(self, answer: Answer) -> Answer:
        """The answer of a reply that was cut at ``max_tokens``: unless its sentence is complete, it becomes free text, since its last attribute may be cut."""
        if answer.status == FAILED:
            return answer._replace(reason=f"{answer.reason}, and cut at describe.max_tokens = {self._max_tokens}")
        if answer.status == DESCRIBED and not (answer.text or "").endswith((".", "!", "?")):
            return Answer(answer.text, None, (), FREE)
        return answer

    def _content(self, subject: Subject) -> list[dict[str, Any]]:
        return _content(self._template.prompt, _data_url(images.decode(subject.read(), 2 * self._image_size), self._image_size))


def _content(prompt: str, image: str) -> list[dict[str, Any]]:
    """Content of a message, with the text first, so that a server can reuse its computation for all images."""
    return [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": image}}]


def _data_url(image: Image.Image, size: int) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(images.thumbnail(images.padded(image, MOST_RATIO), size)).decode()}"


def openai_identity(model: str, config: DescribeConfig) -> dict[str, object]:
    """Identity of the request, independent of the server. Raises Refused for an invalid address or template file."""
    checked_urls(config.url)
    asked = template.load(config)
    return {
        "name": f"openai:{model}",
        "version": VERSION,
        "template": template.VERSION,
        "prompt": asked.prompt,
        "temperatures": [TEMPERATURE, SECOND_TEMPERATURE],
        "max_tokens": config.max_tokens,
        "image_size": config.image_size,
        **({"pattern": asked.own_pattern} if asked.own_pattern else {}),
    }
