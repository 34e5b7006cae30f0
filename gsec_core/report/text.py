"""Prepares foreign text for a page: makes hidden characters visible, and cuts text to the length that its place allows."""

import re

_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, characters that reverse the reading order, and halves of surrogate pairs, which UTF-8 cannot encode."""

ELLIPSIS = "…"


def visible(text: str) -> str:
    """Replace every hidden or reordering character by its code, such as ``\\u202e``."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def prose(text: str, limit: int) -> str:
    """Words on one line, cut as in `cut`."""
    return cut(" ".join(text[: 4 * limit].split()), limit)


def cut(text: str, limit: int) -> str:
    """The beginning of the text, at most ``limit`` bytes in the page, followed by an ellipsis if it was cut."""
    shown = visible(text[: limit + 1])  # no character takes less than a byte
    kept = _beginning(shown, limit)
    return shown if kept == shown else kept.rstrip() + ELLIPSIS


def cut_middle(text: str, limit: int) -> str:
    """The text, or its beginning and end with an ellipsis between them; the end gets two thirds of ``limit``, since it distinguishes addresses."""
    shown = visible(text[: limit + 1])
    if _beginning(shown, limit) == shown:
        return shown
    tail = 2 * limit // 3
    return _beginning(shown, limit - tail) + ELLIPSIS + _beginning(visible(text[-tail:])[::-1], tail)[::-1]


def _beginning(text: str, limit: int) -> str:
    """The first characters of the text, as many as fit into ``limit`` bytes."""
    used = 0
    for place, character in enumerate(text[: limit + 1]):
        used += _bytes(character)
        if used > limit:
            return text[:place]
    return text


def _bytes(character: str) -> int:
    """Largest number of bytes of a character in UTF-8, escaped for HTML (``&#34;``) or for a script (``\\u003c``)."""
    if character in "<>&'\"\\":
        return 6
    return 1 if character < "\x80" else 2 if character < "\u0800" else 3 if character < "\U00010000" else 4
