"""A list of images: what a gallery shows a page of, and what the arrow keys of an image's page go through."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

from gsec_core.errors import Refused
from gsec_core.explore import SORTS, Collection, Page, polygon

PER_PAGE = 60
"""Images a page."""

_ORDERS = {"descending": True, "ascending": False}

_NUMBERS = 10
"""Digits that a key or a page's number has at most."""


@dataclass(frozen=True)
class Listing:
    """Images of a cluster or of all, in an order; or what a search finds, by words or by an image."""

    key: int | None = None
    sort: str = "confidence"
    descending: bool = SORTS["confidence"]
    within: polygon.Polygon = ()
    """On the map; empty for all of it."""
    hidden: bool = False
    words: str | None = None
    like: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Listing":
        """As `query` has it. Raises Refused for what cannot be."""
        sort = given.get("sort", "confidence")
        order = given.get("order", "descending" if SORTS.get(sort) else "ascending")
        if sort not in SORTS or order not in _ORDERS:
            raise Refused(f"sort = {sort[:40]}, order = {order[:40]}: there are {', '.join(SORTS)}; {', '.join(_ORDERS)}.")
        return cls(
            key=None if "key" not in given else number("key", given["key"]),
            sort=sort,
            descending=_ORDERS[order],
            within=polygon.parsed(given["within"]) if given.get("within") else (),
            hidden=given.get("hidden") == "1",
            words=given.get("q"),
            like=given.get("like"),
        )

    @classmethod
    def parse(cls, query: str) -> "Listing":
        """What `query` gave."""
        return cls.of(dict(parse_qsl(query)))

    @property
    def searches(self) -> bool:
        """Whether it is what a search finds, which has no end but that of patience."""
        return self.words is not None or self.like is not None

    @property
    def query(self) -> str:
        """For an address."""
        return urlencode(self._values(with_key=True))

    def sorted(self, sort: str, descending: bool) -> "Listing":
        """The same in another order."""
        return replace(self, sort=sort, descending=descending)

    def address(self, base: str, page: int = 1) -> str:
        """Of the page that shows it."""
        if self.searches:
            path = "/search"
        elif self.key is not None:
            path = f"/clusters/{self.key}"
        else:
            path = "/images"
        query = urlencode([*self._values(with_key=False), *([("page", page)] if page > 1 else [])])
        return f"{base}{path}{'?' if query else ''}{query}"

    def part(self, collection: Collection, offset: int, limit: int) -> Page:
        """Some of its images."""
        if self.words is not None:
            return collection.by_words(self.words, offset, limit)
        if self.like is not None:
            return collection.like(self.like, offset, limit)
        return collection.images(self.key, self.sort, self.descending, self.within or None, self.hidden, offset, limit)

    def _values(self, with_key: bool) -> list[tuple[str, str | int]]:
        found: list[tuple[str, str | int]] = []
        if with_key and self.key is not None:
            found.append(("key", self.key))
        if (self.sort, self.descending) != ("confidence", SORTS["confidence"]):
            found += [("sort", self.sort), ("order", "descending" if self.descending else "ascending")]
        if self.within:
            found.append(("within", ",".join(f"{x:g},{y:g}" for x, y in self.within)))
        if self.hidden:
            found.append(("hidden", 1))
        found += [(name, value) for name, value in (("q", self.words), ("like", self.like)) if value is not None]
        return found


def number(name: str, text: str) -> int:
    """A whole number from 0. Raises Refused if it is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBERS):
        raise Refused(f"{name} = {text[:40]}: it is no number.")
    return int(text)
