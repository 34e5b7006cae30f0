"""Vocabularies (lists of nouns, or of a user's words and sentences), and the prompts into which the words are put."""

import json
import lzma
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import xxhash

from gsec_core.errors import Refused

WORDNET = Path(__file__).with_name("wordnet-3.0.txt.xz")
"""The 117,798 nouns of WordNet 3.0, one word per line. Made by `benchmarks.wordnet`; the licence is beside it."""

FILE = "file:"
SYNONYM = "|"
"""Separator of synonyms in a line of a file; the vectors of synonyms are averaged."""

MOST_WORDS = 200_000
"""Largest number of words in a user's file, since each is encoded in every prompt and held in memory."""

PROMPTS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""Seven prompts of CLIP (Radford et al. 2021), which TAC uses."""

PROMPT = "a photo of a {}"
"""The only prompt for encoders that were not trained on captions."""

_SENTENCE_WORDS = 6
"""Text of at least this number of words is a sentence, which is used without a prompt."""


class Vocabulary(NamedTuple):
    """The words of a vocabulary, each once."""

    words: tuple[str, ...]
    identity: dict[str, object]
    """Identity for fingerprints: JSON-serialisable, without paths."""


def load_vocabulary(name: str) -> Vocabulary:
    """Load ``wordnet``, ``imagenet``, or ``file:PATH``. Raises Refused naming ``text.vocabulary``."""
    if name == "wordnet":
        return wordnet()
    if name == "imagenet":
        return _imagenet()
    if name.startswith(FILE):
        return _of_file(name.removeprefix(FILE))
    raise Refused(f"text.vocabulary = {json.dumps(name)}: there is no such vocabulary; there are `wordnet`, `imagenet` and `file:PATH`.")


@cache
def wordnet() -> Vocabulary:
    """The nouns of WordNet; of spellings that differ only in case, only the first is included."""
    return _vocabulary("wordnet", lzma.decompress(WORDNET.read_bytes()).decode().splitlines())


@cache
def _imagenet() -> Vocabulary:
    """Names of ImageNet's thousand classes, as CLIP's authors cleaned them."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return _vocabulary("imagenet", list(dict.fromkeys(IMAGENET_CLASSNAMES)))


def _of_file(path: str) -> Vocabulary:
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise Refused(f"text.vocabulary = file:{path}: it cannot be read ({error.strerror}). Give a text file, a word or sentence on each line.") from None
    except UnicodeDecodeError:
        raise Refused(f"text.vocabulary = file:{path}: it is not UTF-8. Save it as UTF-8, with a word or a sentence on each line.") from None
    words = list(dict.fromkeys(word for line in lines if (word := " ".join(line.split()))))
    if not 2 <= len(words) <= MOST_WORDS:
        raise Refused(f"text.vocabulary = file:{path}: it has {len(words):,} different lines; give between 2 and {MOST_WORDS:,} words or sentences.")
    return _vocabulary("file", words)


def _vocabulary(kind: str, words: Sequence[str]) -> Vocabulary:
    digest = xxhash.xxh3_128_hexdigest("\n".join(words).encode())
    synonyms = {"synonyms": True} if any(SYNONYM in word for word in words) else {}
    return Vocabulary(tuple(words), {"vocabulary": kind, "words": len(words), "digest": digest, **synonyms})


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises Refused for a prompt without a place for the word."""
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise Refused(f"text.prompts: {json.dumps(prompt)} has no place for the word; write one {{}} in it, as `a photo of a {{}}`.")


def prompted(word: str, prompts: Sequence[str]) -> list[str]:
    """The texts to encode for a word: each synonym in every prompt; a sentence is used as it is."""
    texts = []
    for said in _synonyms(word):
        texts += [said] if len(said.split()) >= _SENTENCE_WORDS else [prompt.replace("{}", said) for prompt in prompts]
    return texts


def shown(word: str) -> str:
    """The form of a word for display: the first of its synonyms."""
    return _synonyms(word)[0]


def _synonyms(word: str) -> list[str]:
    return [synonym.strip() for synonym in word.split(SYNONYM) if synonym.strip()] or [word]
