from pathlib import Path

import pytest

from gsec_core.errors import Refused
from gsec_core.text import vocabulary
from gsec_core.text.vocabulary import PROMPTS, check_prompts, load_vocabulary, prompted, shown

DEBIANS = Path("/usr/share/wordnet/data.noun")


def test_wordnet_has_each_noun_once() -> None:
    words = load_vocabulary("wordnet").words
    assert len(words) == 117_798
    assert words[:3] == ("entity", "physical entity", "abstraction")
    assert len({word.casefold() for word in words}) == len(words)
    assert {"airplane", "tabby", "Eiffel Tower"} <= set(words)
    assert "Princeton University" in vocabulary.WORDNET.with_name("wordnet-3.0.LICENSE").read_text()


@pytest.mark.skipif(not DEBIANS.exists(), reason="Debian's wordnet-base is not installed; the count above is checked everywhere")
def test_wordnets_nouns_are_those_of_debians_package() -> None:
    from benchmarks.wordnet import nouns

    assert tuple(nouns(DEBIANS)) == load_vocabulary("wordnet").words


def test_the_vocabulary_imagenet_has_names_of_its_classes() -> None:
    assert {"tench", "barn"} <= set(load_vocabulary("imagenet").words)


def test_a_vocabulary_file_has_one_word_or_sentence_per_line(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeffred  shoe\n\n  green shoe\nred shoe\r\nZürcher Geschnetzeltes\n", "utf-8")
    found = load_vocabulary(f"file:{tmp_path / 'words.txt'}")
    assert found.words == ("red shoe", "green shoe", "Zürcher Geschnetzeltes")
    (tmp_path / "moved.txt").write_text("red shoe\ngreen shoe\nZürcher Geschnetzeltes", "utf-8")
    assert load_vocabulary(f"file:{tmp_path / 'moved.txt'}").identity == found.identity, "the identity must depend on the words only"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it has 0 different lines"),
        (b"shoe\nshoe\n", "it has 1 different lines"),
        (b"caf\xe9\nshoe\n", "it is not UTF-8"),
        (b"\n".join(b"%d" % number for number in range(1_000_000)), "it has 1,000,000 different lines; give between 2 and 200,000"),
    ],
)
def test_an_unusable_vocabulary_file_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(Refused, match=says):
        load_vocabulary(f"file:{tmp_path / 'words.txt'}")


def test_unknown_vocabularies_and_prompts_without_a_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="there are `wordnet`, `imagenet` and `file:PATH`"):
        load_vocabulary("words")
    with pytest.raises(Refused, match=r"nowhere.txt: it cannot be read \(No such file"):
        load_vocabulary(f"file:{tmp_path / 'nowhere.txt'}")
    with pytest.raises(Refused, match="has no place for the word"):
        check_prompts(["a photo of a {}", "a photo"])


def test_words_are_put_into_prompts_and_sentences_are_not() -> None:
    assert prompted("shoe", PROMPTS)[0] == "itap of a shoe."
    assert len(prompted("red shoe", PROMPTS)) == 7
    assert prompted("a red shoe on a white table", PROMPTS) == ["a red shoe on a white table"]


def test_a_line_may_begin_with_a_separator_of_synonyms() -> None:
    assert (shown("| cat | kitty |"), prompted("| cat | kitty |", ["a {}"])) == ("cat", ["a cat", "a kitty"])
    assert (shown("|"), prompted("|", ["a {}"])) == ("|", ["a |"])
