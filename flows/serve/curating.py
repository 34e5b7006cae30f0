"""Forms that curate clusters: their tokens, the acts that they request, and acts in words."""

import hmac
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import FormData

from flows.serve.listing import Listing, number
from gsec_core.curation import Act, Untold, add
from gsec_core.errors import Refused, without_secrets
from gsec_core.explore import MOST_ROWS, ActRow, Collection

_log = logging.getLogger("gsec.serve")

MOST_AT_ONCE = 5_000
"""Maximal number of images in one act."""


class Forms:
    """Tokens of the forms that this process writes, so that no other page can send such a form."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def token(self, run_id: str, who: str) -> str:
        """Token of the forms for a run and a user."""
        return hmac.digest(self._secret, f"{run_id} {who}".encode("utf-8", "surrogatepass"), "sha256").hex()

    def wrote(self, token: str, run_id: str, who: str) -> bool:
        """Whether this process wrote a form with this token for the run and the user."""
        return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self.token(run_id, who).encode())


def said(collection: Collection, **what: Any) -> Act:
    """Add an act to the curation log.

    If the act was added but the publication's record could not be updated, that is only logged: the next act or run repairs it.
    """
    try:
        return add(collection.context, **what)
    except Untold as error:
        _log.error("%s", without_secrets(str(error)))
        return error.act


def asked(form: FormData, collection: Collection) -> dict[str, Any]:
    """The act that a form requests, as arguments of `gsec_core.curation.add`. Raises Refused if something is missing or invalid."""
    kind = _text(form, "kind")
    what: dict[str, Any] = {"kind": kind, "why": _text(form, "why") or None}
    if kind in ("rename", "describe"):
        text = _text(form, "name" if kind == "rename" else "description")
        return what | {"key": _key(form, "key"), "text": " ".join(text.split())}  # a text area has line breaks, a description has none
    if kind == "merge":
        return what | {"key": _key(form, "to"), "keys": [_key(form, "key")]}
    if kind == "split":
        return what | {"key": _key(form, "key"), "parts": number("parts", _text(form, "parts"))}
    if kind == "undo":
        return what | {"undoes": number("number", _text(form, "number"))}
    if kind != "move" and kind not in _OF_CLUSTERS_OR_IMAGES:
        raise Refused(f"kind = {kind[:40]}: there is no such act.")
    if kind != "move" and _text(form, "key"):
        return what | {"key": _key(form, "key")}
    images = _images(form, collection)
    return what | {"images": images} | ({"key": _key(form, "to")} if kind == "move" else {})


_OF_CLUSTERS_OR_IMAGES = {"hide": "Hid", "show": "Showed again", "star": "Starred", "unstar": "Took the star from"}


def in_words(act: ActRow, names: Mapping[int, str]) -> str:
    """An act in a sentence; ``names`` are the current names of the clusters by key."""

    def cluster(key: int | None) -> str:
        return f"cluster {key}" + (f" ({names[key]})" if key is not None and key in names else "")

    def clusters(keys: Sequence[int]) -> str:
        return f"cluster{'' if len(keys) == 1 else 's'} {', '.join(map(str, keys))}"

    if act.key is None and not act.image_count and act.undoes is None:
        return f"{act.kind}, from a newer gsec"
    about = f"{act.image_count:,} image{'' if act.image_count == 1 else 's'}" if act.image_count else cluster(act.key)
    match act.kind:
        case "rename":
            return f"Renamed cluster {act.key} to “{act.text}”"
        case "describe":
            return f"Described {about} as “{act.text}”"
        case "merge":
            return f"Merged {clusters(act.keys)} into {cluster(act.key)}"
        case "split":
            return f"Split {about}, which added {clusters(act.keys)}"
        case "move":
            return f"Moved {about} to {cluster(act.key)}"
        case "undo":
            return f"Undid act {act.undoes}"
    return f"{_OF_CLUSTERS_OR_IMAGES.get(act.kind, act.kind)} {about}"


def place_after(form: FormData, act: Act, collection: Collection, base: str) -> str:
    """Address of the page to show next: the one with the form, if it belongs to this collection and still exists, else the explorer."""
    place = _text(form, "next")
    if not re.fullmatch(re.escape(base) + r"/[!-~]*", place) or "\\" in place:
        place = f"{base}/explore"
    if act.kind == "merge":
        place = f"{base}/clusters/{act.key}"
    of_cluster = re.match(re.escape(base) + r"/clusters/(\d{1,10})", place)
    if of_cluster and int(of_cluster[1]) not in {row.key for row in collection.clusters(hidden=True)}:
        place = f"{base}/explore"
    return f"{place}{'&' if '?' in place else '?'}done={act.number}"


def _images(form: FormData, collection: Collection) -> list[str]:
    everything = form.get("everything")
    if not isinstance(everything, str):
        images = [value for value in form.getlist("image") if isinstance(value, str)]
        if not images:
            raise Refused("No image is selected: check the images first.")
        return images
    listing = Listing.parse(everything)
    first = listing.part(collection, 0, MOST_ROWS)
    if first.total > MOST_AT_ONCE:
        raise Refused(f"The list has {first.total:,} images; at most {MOST_AT_ONCE:,} can be changed at once.")
    rest = [listing.part(collection, offset, MOST_ROWS) for offset in range(MOST_ROWS, first.total, MOST_ROWS)]
    return [row.id for page in (first, *rest) for row in page.rows]


def _key(form: FormData, name: str) -> int:
    text = _text(form, name)
    if not text:
        raise Refused("No cluster is chosen: choose one from the list.")
    return number(name, text)


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""
