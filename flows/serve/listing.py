"""A list of images: a gallery shows it page by page, and the arrow keys on an image's page step through it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

from gsec_core.errors import Refused
from gsec_core.explore import SORTS, Collection, Page, polygon

PER_PAGE = 60
"""Images on a page."""

_ORDERS = {"descending": True, "ascending": False}

_NUMBERS = 10
"""Maximal number of digits of a key or a page number."""


@dataclass(frozen=True)
class Listing:
    """The images of a cluster or of all clusters in some order, or the result of a search by words or by an image."""

    key: int | None = None
    sort: str = "confidence"
    descending: bool = SORTS["confidence"]
    within: polygon.Polygon = ()
    """Polygon on the map; empty for the whole map."""
    hidden: bool = False
    words: str | None = None
    like: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Listing":
        """Make a listing from the parameters of a query (see `query`). Raises Refused for an invalid value."""
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
        """Make a listing from a query string of `query`."""
        return cls.of(dict(parse_qsl(query)))

    @property
    def searches(self) -> bool:
        """Whether the listing is the result of a search, which ranks all images and so has no natural end."""
        return self.words is not None or self.like is not None

    @property
    def query(self) -> str:
        """The listing as a query string."""
        return urlencode(self._values(with_key=True))

    def sorted(self, sort: str, descending: bool) -> "Listing":
        """The same listing in another order."""
        return replace(self, sort=sort, descending=descending)

    def address(self, base: str, page: int = 1) -> str:
        """Address of the page that shows the listing."""
        if self.searches:
            path = "/search"
        elif self.key is not None:
            path = f"/clusters/{self.key}"
        else:
            path = "/images"
        query = urlencode([*self._values(with_key=False), *([("page", page)] if page > 1 else [])])
        return f"{base}{path}{'?' if query else ''}{query}"

    def part(self, collection: Collection, offset: int, limit: int) -> Page:
        """At most ``limit`` images of the listing, from the row ``offset`` on."""
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
    """Parse a whole number from 0 on. Raises Refused for any other text."""
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBERS):
        raise Refused(f"{name} = {text[:40]}: it is not a number.")
    return int(text)
