"""What the pipeline needs of a captioner. Implementations import their frameworks when they are built, not before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class Subject:
    """An image to describe."""

    uri: str
    content_hash: bytes
    read: Callable[[], bytes]
    """The image's bytes. Raises MissingImage if they are gone or others by now, Unreachable if the source does not answer."""


class Answer(NamedTuple):
    """A final answer: it is logged, and the image is never asked about again."""

    text: str | None
    object: str | None
    attributes: tuple[str, ...]
    status: str
    """DESCRIBED, FREE or FAILED of `gsec_core.tables`."""
    reason: str | None = None


class Captioner(Protocol):
    """Describes one image at a time. Called from as many threads as ``concurrency`` says."""

    model: str
    """Who answers; a column of the captions."""
    concurrency: int

    @property
    def form(self) -> str:
        """What makes an answer a sentence of the template; for the record. May ask. Raises as `describe`."""
        ...

    def check(self) -> None:
        """Raises Refused, naming the setting and the remedy, if nothing can be asked: no server, wrong key, no such model."""
        ...

    def describe(self, subject: Subject) -> Answer:
        """Raises Refused if nothing will ever be answered as it is set up, Unreachable if nothing is for now, and what ``subject.read`` raises."""
        ...
