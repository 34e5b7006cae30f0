"""Foreign text for a page: what cannot be seen made visible, and no longer than its place allows."""

import re

_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, those that turn the reading order around, and halves of surrogate pairs, which UTF-8 cannot hold."""

ELLIPSIS = "…"


def visible(text: str) -> str:
    """The text with every character that hides or reorders others written as its code, as in ``\\u202e``."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def prose(text: str, limit: int) -> str:
    """Words on one line, cut at the end to ``limit`` bytes of page and an ellipsis."""
    return cut(" ".join(text[: 4 * limit].split()), limit)


def cut(text: str, limit: int) -> str:
    """The beginning: at most ``limit`` bytes of page and, if that is not all of it, an ellipsis."""
    shown = visible(text[: limit + 1])  # no character takes less than a byte
    kept = _beginning(shown, limit)
    return shown if kept == shown else kept.rstrip() + ELLIPSIS


def cut_middle(text: str, limit: int) -> str:
    """The beginning and, for two thirds of ``limit``, the end, which tells addresses apart; an ellipsis between them."""
    shown = visible(text[: limit + 1])
    if _beginning(shown, limit) == shown:
        return shown
    tail = 2 * limit // 3
    return _beginning(shown, limit - tail) + ELLIPSIS + _beginning(visible(text[-tail:])[::-1], tail)[::-1]


def _beginning(text: str, limit: int) -> str:
    """As many characters as fit into ``limit`` bytes."""
    used = 0
    for place, character in enumerate(text[: limit + 1]):
        used += _bytes(character)
        if used > limit:
            return text[:place]
    return text


def _bytes(character: str) -> int:
    """The most that a character takes in UTF-8, be it escaped for HTML (``&#34;``) or for a script (``\\u003c``)."""
    if character in "<>&'\"\\":
        return 6
    return 1 if character < "\x80" else 2 if character < "\u0800" else 3 if character < "\U00010000" else 4
