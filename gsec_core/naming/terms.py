"""Names of clusters, from the descriptions of their images.

A term's weight in a cluster is class-based TF-IDF (Grootendorst 2022, https://arxiv.org/abs/2203.05794): it is frequent there
and rare elsewhere.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, pairwise
from typing import NamedTuple

import regex

VERSION = 1
"""Increased when equal descriptions give other names."""

TERMS = 8
"""Number of distinctive terms that are kept for a cluster."""

LONGEST_NAME = 80
"""Largest number of characters in a name."""

_LETTERS = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*"  # with marks, such as the vowels of Hindi and Thai
_WORD = regex.compile(rf"{_LETTERS}(?:[-'’.]{_LETTERS})*")
_STOP_WORDS = {"image", "images", "picture", "photo", "photograph", "contains", "characterised", "characterized", "shows"}
"""Words of descriptions that tell nothing, besides the stop words of English."""
_AFTER_HEAD = {"of", "with", "in", "on", "for", "from", "at", "and", "or"}
"""Words after which a noun phrase's head has ended: a loaf of bread is a loaf."""


class Description(NamedTuple):
    """The description of one image."""

    text: str
    object: str | None
    attributes: tuple[str, ...]


class Name(NamedTuple):
    """Name, description and terms of a cluster."""

    name: str
    """Differs from the name of every other cluster, ignoring case."""
    description: str | None
    """One sentence; None without descriptions."""
    terms: tuple[str, ...]
    """The most distinctive first."""


class _Term(NamedTuple):
    text: str
    """The most frequent spelling."""
    said: int
    """Number of the cluster's descriptions that contain the term."""
    weight: float


def name_clusters(said: Sequence[Sequence[Description]]) -> list[Name]:
    """A name for each cluster from the descriptions of its images. Equal descriptions in any order give equal names.

    A name is the most distinctive object; or two objects, if the first is in fewer than half of the descriptions; or a distinctive
    word, if no description names an object; or, for instance, ``cluster 7``, if there is none.
    """
    return _named(said, [(cluster,) for cluster in range(len(said))], len(said))


def name_groups(said: Sequence[Sequence[Description]], groups: Sequence[Sequence[int]]) -> list[Name]:
    """As `name_clusters`, for groups of clusters, which may be nested: each group is distinguished from all clusters outside it."""
    return _named(said, groups, 2)


def _named(said: Sequence[Sequence[Description]], groups: Sequence[Sequence[int]], classes: int) -> list[Name]:
    """Names of groups of clusters; each group counts as one of ``classes`` classes of equal size, see `c_tf_idf`."""
    weighed = (_weigh(said, groups, classes, terms_of) for terms_of in (_objects, _attributes, _words_and_pairs))
    together = ([description for cluster in group for description in said[cluster]] for group in groups)
    found = [_name(*group) for group in zip(together, *weighed, strict=True)]
    names = unique([(name.name, name.terms) for name in found])
    return [name._replace(name=shown) for name, shown in zip(found, names, strict=True)]


def _name(descriptions: Sequence[Description], objects: Sequence[_Term], attributes: Sequence[_Term], terms: Sequence[_Term]) -> Name:
    best = _apart(terms, TERMS)
    heads = _apart(objects, 3) or best[:1]
    enough = 1 if heads and 2 * heads[0].said >= len(descriptions) else 2
    name = ", ".join(term.text for term in heads[:enough])[:LONGEST_NAME]
    if not descriptions:
        sentence = None
    elif objects:
        often = [term for term in _apart(attributes, 3) if term.said > 1]
        sentence = f"Mostly {_listed(heads)}{f'; often {_listed(often)}' if often else ''}."
    else:  # the description with the most distinctive terms
        weight = {_key(term.text): term.weight for term in terms}
        sentence = max((sum(weight.get(key, 0.0) for key in sorted(set(map(_key, _words_and_pairs(said))))), said.text) for said in descriptions)[1]
    return Name(name, sentence, tuple(term.text for term in best))


def unique(wanted: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Make names distinct: the first cluster keeps a name, later ones add one of their terms, or their number."""
    taken: set[str] = set()
    names = []
    for cluster, (wish, terms) in enumerate(wanted):
        wish = wish or f"cluster {cluster}"
        more = (f"{wish}, {term}" for term in terms if not _overlap(term, wish))
        name = next(name for name in chain([wish], more, _numbered(wish, cluster)) if _key(name) not in taken)
        taken.add(_key(name))
        names.append(name)
    return names


def _numbered(wish: str, cluster: int) -> Iterator[str]:
    name = f"{wish} {cluster}"
    while True:
        yield name
        name += "'"


def _weigh(
    said: Sequence[Sequence[Description]], groups: Sequence[Sequence[int]], classes: int, terms_of: Callable[[Description], list[str]]
) -> Iterator[list[_Term]]:
    """The terms of each group of clusters, of largest weight first, without those that are more frequent overall than in the group, such as "colours"."""
    spelt: dict[str, Counter[str]] = {}
    counts: list[Counter[str]] = []
    for descriptions in said:
        counts.append(Counter())
        for description in descriptions:
            terms = {_key(term): term for term in terms_of(description)}  # repetitions within one description do not count
            counts[-1].update(terms.keys())
            for key, term in terms.items():
                spelt.setdefault(key, Counter())[term] += 1
    spelling = {key: min(spellings, key=lambda term: (-spellings[term], term)) for key, spellings in spelt.items()}
    overall = _together(counts)
    total = overall.total()
    for group in groups:
        count = _together([counts[cluster] for cluster in group])
        terms_here, weights = count.total(), c_tf_idf(count, overall, classes)
        own = [_Term(spelling[key], count[key], weight) for key, weight in weights.items() if count[key] * total >= overall[key] * terms_here]
        yield sorted(own, key=lambda term: (-term.weight, -len(term.text), term.text))


def c_tf_idf(count: Mapping[str, int], overall: Mapping[str, int], classes: int) -> dict[str, float]:
    """Weight of each term of a class: its share of the class's terms times log(1 + mean number of terms per class / count of the term over all classes)."""
    total, mean = sum(count.values()), sum(overall.values()) / classes
    return {term: n / total * math.log(1 + mean / overall[term]) for term, n in count.items()}


def _together(counts: Sequence[Mapping[str, int]]) -> Counter[str]:
    overall: Counter[str] = Counter()
    for count in counts:
        overall.update(count)
    return overall


def _apart(terms: Sequence[_Term], most: int) -> list[_Term]:
    """At most ``most`` terms of largest weight, without those that overlap with an earlier one."""
    found: list[_Term] = []
    for term in terms:
        if len(found) == most:
            break
        if not any(_overlap(term.text, other.text) for other in found):
            found.append(term)
    return found


def _overlap(one: str, other: str) -> bool:
    """Whether one of the terms contains all words of the other."""
    a, b = set(_words(_key(one))), set(_words(_key(other)))
    return a <= b or b <= a


def _objects(description: Description) -> list[str]:
    """Possible names of the object: an "Egyptian cat" is also a "cat", and a "slice of lemon pie" is a "slice"."""
    words = _words(description.object or "")
    head = next((index for index, word in enumerate(words) if index and word.lower() in _AFTER_HEAD), len(words))
    names = [" ".join(words)] + [" ".join(words[start:head]) for start in range(head)]
    return [name for name in names if _tells(name)]


def _attributes(description: Description) -> list[str]:
    return [attribute for attribute in description.attributes if _words(attribute)]


def _words_and_pairs(description: Description) -> list[str]:
    """Words, and pairs of adjacent words, of object and attributes if the description has an object, else of the text."""
    found = []
    for phrase in [description.object, *description.attributes] if description.object else [description.text]:
        words = _words(phrase)
        found += [word for word in words if _tells(word)]
        found += [f"{one} {other}" for one, other in pairwise(words) if _tells(one) and _tells(other)]
    return found


def _tells(term: str) -> bool:
    return len(term) > 1 and term.lower() not in _stop_words()


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS | _STOP_WORDS)


def _listed(terms: Sequence[_Term]) -> str:
    *first, last = (term.text for term in terms)
    return f"{', '.join(first)} and {last}" if first else last


def _words(text: str) -> list[str]:
    found: list[str] = _WORD.findall(text)
    return found


def _key(term: str) -> str:
    return term.casefold()
