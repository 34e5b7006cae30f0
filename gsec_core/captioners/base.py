"""Interface of captioners. Implementations import their frameworks only when they are constructed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import add
from typing import NamedTuple, Protocol

from gsec_core.config import DescribeConfig


@dataclass(frozen=True)
class Subject:
    """An image to describe."""

    uri: str
    content_hash: bytes
    read: Callable[[], bytes]
    """Returns the image's bytes. Raises MissingImage if they are gone or have changed, Unreachable if the source does not answer."""


class Cost(NamedTuple):
    """Cost of an answer, as reported by the server."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """Time from request to reply, summed over requests with a reply."""

    def plus(self, other: "Cost") -> "Cost":
        """The cost of both answers together."""
        return Cost(*map(add, self, other))


class Answer(NamedTuple):
    """A final answer: it is logged, and the image is not asked about again."""

    text: str | None
    object: str | None
    attributes: tuple[str, ...]
    status: str
    """DESCRIBED, FREE or FAILED, see `gsec_core.tables`."""
    reason: str | None = None
    cost: Cost | None = None
    """None if no server was asked, or none replied."""


class Captioner(Protocol):
    """Describes images one by one; up to ``concurrency`` calls of `describe` run at the same time in the loop of `background`."""

    model: str
    """Name of the model that answers; a column of the captions."""
    concurrency: int
    """Number of images to process at the same time: those asked about, and those being prepared."""

    @property
    def form(self) -> str:
        """How answers are made to follow the template, in words for the record; known after `check` or an answer."""
        ...

    def check(self) -> None:
        """Raises Refused, naming the setting and the remedy, if the captioner cannot be used: no server, wrong key, no such model."""
        ...

    async def describe(self, subject: Subject) -> Answer:
        """Describe an image. Raises Refused if no request can succeed with these settings, GsecError if no server answers, and what ``subject.read`` raises."""
        ...


class CaptionerFamily(Protocol):
    """A family of captioners with a common name. The reference is the part after the name and a colon, empty if there is none."""

    @property
    def usage(self) -> str:
        """Form of its names, such as ``openai:MODEL``."""
        ...

    @property
    def can_be_asked(self) -> bool:
        """Whether it accepts a criterion and a template."""
        ...

    def load(self, reference: str, config: DescribeConfig, *, device: str, threads: int) -> Captioner:
        """Build the captioner. Raises Refused naming the setting that is wrong. Does not ask whether a server answers; the captioner's `check` does."""
        ...

    def model(self, reference: str) -> str:
        """Name of the model that answers, see `Captioner.model`. Imports no framework."""
        ...

    def identity(self, reference: str, config: DescribeConfig) -> Mapping[str, object]:
        """Everything on which its answers depend: JSON-serialisable, without addresses and keys. Imports no framework. Raises as `load` does."""
        ...
