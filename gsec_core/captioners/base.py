"""What the pipeline needs of a captioner. Implementations import their frameworks when they are built, not before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gsec_core.config import DescribeConfig


@dataclass(frozen=True)
class Subject:
    """An image to describe."""

    uri: str
    content_hash: bytes
    read: Callable[[], bytes]
    """The image's bytes. Raises MissingImage if they are gone or others by now, Unreachable if the source does not answer."""


class Cost(NamedTuple):
    """What an answer took of a server, as it says."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """From request to reply, of those that had one."""

    def plus(self, other: "Cost") -> "Cost":
        return Cost(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
        )


class Answer(NamedTuple):
    """A final answer: it is logged, and the image is never asked about again."""

    text: str | None
    object: str | None
    attributes: tuple[str, ...]
    status: str
    """DESCRIBED, FREE or FAILED of `gsec_core.tables`."""
    reason: str | None = None
    cost: Cost | None = None
    """None where no server was asked, or none replied."""


class Captioner(Protocol):
    """Describes one image at a time; `describe` runs in the loop of `background`, ``concurrency`` times at once."""

    model: str
    """Who answers; a column of the captions."""
    concurrency: int
    """Images to have in hand at once: asked about, or made ready to be."""

    @property
    def form(self) -> str:
        """What makes an answer a sentence of the template; for the record, and known after `check` or an answer."""
        ...

    def check(self) -> None:
        """Raises Refused, naming the setting and the remedy, if nothing can be asked: no server, wrong key, no such model."""
        ...

    async def describe(self, subject: Subject) -> Answer:
        """Raises Refused if nothing will ever be answered as it is set up, GsecError if nobody answers any more, and what ``subject.read`` raises."""
        ...


class CaptionerFamily(Protocol):
    """Captioners of one name. The reference is what comes after the name and a colon, empty where nothing does."""

    @property
    def usage(self) -> str:
        """How it is named, as ``openai:MODEL``."""
        ...

    @property
    def can_be_asked(self) -> bool:
        """Whether it takes a criterion and a template."""
        ...

    def load(self, reference: str, config: DescribeConfig, *, device: str, threads: int) -> Captioner:
        """The captioner. Raises Refused naming the setting that is wrong. Whether a server is there tells the captioner's `check`."""
        ...

    def model(self, reference: str) -> str:
        """Who answers, as `Captioner.model`. Imports no framework."""
        ...

    def identity(self, reference: str, config: DescribeConfig) -> Mapping[str, object]:
        """What makes its answers its own: JSON-able, without addresses and keys. Imports no framework. Raises as `load`."""
        ...
