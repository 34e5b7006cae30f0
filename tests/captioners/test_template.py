import json
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gsec_core.captioners import Answer
from gsec_core.captioners.template import SENTENCE_PATTERN, TOO_LONG, Template, excerpt, failed, load, parse, prompt, sentence
from gsec_core.config import DescribeConfig
from gsec_core.encoders.lite import class_names
from gsec_core.errors import Refused
from gsec_core.tables import DESCRIBED, FAILED, FREE

CAT = ("cat", ("grey fur", "green eyes", "a long tail"))


@pytest.mark.parametrize(
    "reply",
    [
        "This image contains a cat characterised by grey fur, green eyes and a long tail.",
        "this image contains a cat characterized by grey fur, green eyes, and a long tail",
        "THE IMAGE CONTAINS the cat, CHARACTERISED BY: grey fur, green eyes and a long tail!",
        "Sure, here is the sentence:\n\nThis image contains a cat\ncharacterised by grey fur,\n  green eyes\tand a long tail.\n",
        "**This image contains a `cat` characterised by *grey fur*, _green eyes_ and __a long tail__.**",
        '"This image contains a cat characterised by grey fur, green eyes and a long tail."',
        "“This image contains a “cat” characterised by grey fur, green eyes and a long tail”",
        "'This image contains a 'cat' characterised by 'grey fur', 'green eyes' and 'a long tail'.'",
        "This image contains a <cat> characterised by <grey fur>, <green eyes> and <a long tail>.",
        "This image\0 contains several cat characterised\u200b by grey\x1b fur, green eyes and a long tail.",
        "I cannot name it. However, this image contains a cat characterised by grey fur, green eyes and a long tail. Shall I go on?",
        "This image contains a cat characterised by grey fur, green eyes and a long tail. " + "It is a fine day. " * 100,
    ],
)
def test_variants_of_the_template_sentence_are_parsed(reply: str) -> None:
    answer = parse(reply)
    assert (answer.object, answer.attributes, answer.status, answer.reason) == (*CAT, DESCRIBED, None)


@given(st.from_regex(SENTENCE_PATTERN, fullmatch=True))
def test_every_text_that_matches_the_pattern_is_parsed_as_described(text: str) -> None:
    answer = parse(text)
    assert answer.status == DESCRIBED
    assert answer.object
    assert 3 <= len(answer.attributes) <= 4, "one attribute may contain the word and"


def test_the_text_of_an_answer_is_the_sentence_alone() -> None:
    assert parse(f"Sure:\n**{sentence(*CAT)}** Anything else?").text == sentence(*CAT)


@pytest.mark.parametrize(
    ("listing", "attributes"),
    [
        ("fur", ("fur",)),
        ("fur and a tail", ("fur", "a tail")),
        ("fur, black and white stripes, and a tail", ("fur", "black and white stripes", "a tail")),
        ("a tail, and black and white stripes", ("a tail", "black and white stripes")),
        ("1,000 spots and 3.5 m of height", ("1,000 spots", "3.5 m of height")),
        ("a St. Andrew's cross and wings", ("a St. Andrew's cross", "wings")),
        ("a, b, c, d and e", ("a", "b", "c", "d", "e")),
    ],
)
def test_one_to_five_attributes_are_separated(listing: str, attributes: tuple[str, ...]) -> None:
    answer = parse(f"This image contains a thing characterised by {listing}.")
    assert (answer.attributes, answer.status) == (attributes, DESCRIBED)


@pytest.mark.parametrize(
    "reply",
    [
        "A cat on a sofa.",
        "This image contains a cat.",
        "This image contains a cat. It is characterised by grey fur.",
        "This image contains a cat characterised by .",
        "This image contains a cat characterised by a, b, c, d, e and f.",
        "This image contains a <b>cat</b> characterised by <i>fur</i>.",
        "Sorry-looking cats; as an aid, I cannot see...",
    ],
)
def test_a_reply_outside_the_template_is_kept_as_free_text(reply: str) -> None:
    assert parse(f" {reply}\n") == Answer(reply, None, (), FREE)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty"),
        (" \n\0 ** ", "empty"),
        ("N/A", "empty"),
        ("*None*.", "empty"),
        ("[image]", "empty"),
        ("Unknown.", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal: I'm sorry, but I can't help with that."),
        ("I’m unable to see\nimages.", "refusal: I’m unable to see images."),
        ("Sorry, I cannot do this.", "refusal"),
        ("Unfortunately, I am not able to see it.", "refusal"),
        ("As an AI language model, I have no eyes.", "refusal"),
        ("x" * TOO_LONG, "600 characters"),
        (f"This image contains a cat characterised by {'grey ' * 120}fur.", "characters"),
        (prompt(None).partition("else: ")[2][:90], "repeats the template"),
    ],
)
def test_empty_refused_too_long_or_echoed_replies_are_failures(reply: str, reason: str) -> None:
    answer = parse(reply)
    assert answer[:4] == (None, None, (), FAILED)
    assert answer.reason is not None
    assert reason in answer.reason


PIECES = ["this image contains ", "a ", "characterised by ", " and ", ",", ".", "I cannot", "<", ">", "*", "_", "'", "St. ", "\n", "\0", "\ud800", "\u202e"]


@given(st.one_of(st.text(st.characters(codec=None)), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=60).map("".join)))
@example("this image contains " * 10_000)
@example("this image contains a characterised by " + "a, " * 50_000)
@example("<a" * 50_000)
def test_parsing_any_string_gives_a_consistent_answer(reply: str) -> None:
    answer = parse(reply)
    assert (answer.status == DESCRIBED) == (answer.object is not None) == bool(answer.attributes)
    assert (answer.status == FAILED) == (answer.text is None) == (answer.reason is not None)
    for text in (answer.text or "", answer.object or "", *answer.attributes, answer.reason or ""):
        assert not {unicodedata.category(character) for character in text} & {"Cc", "Cs"}, (
            "an answer must have no control characters and no halves of surrogate pairs"
        )
        assert len(text) < TOO_LONG


WORD = st.from_regex(r"[a-z]+(-[a-z]+)?", fullmatch=True).filter(lambda word: word not in ("and", "st"))
PHRASE = st.lists(WORD, min_size=1, max_size=4).map(" ".join)


@given(PHRASE, st.lists(PHRASE, min_size=1, max_size=5).map(tuple))
def test_a_made_sentence_is_read_back(object: str, attributes: tuple[str, ...]) -> None:
    made = sentence(object, attributes)
    assert parse(made) == Answer(made, object, attributes, DESCRIBED)


def test_every_class_name_is_read_back() -> None:
    for name in class_names():
        assert parse(sentence(name, ("some texture",))).object == name


@pytest.mark.parametrize(
    "noun", ["a cat", "an owl", "a unicycle", "an umbrella", "a European lynx", "an hourglass", "a house", "an unimportant thing", "a ewe"]
)
def test_the_sentence_has_the_right_article(noun: str) -> None:
    article, _, object = noun.partition(" ")
    assert sentence(object, ("x",)).startswith(f"This image contains {article} {object} ")


def test_reasons_are_one_line_and_excerpts_are_limited() -> None:
    assert failed("a\nb\0c").reason == "a b c"
    assert len(excerpt("x\n" * 1000)) == 200


# An operator's own template

DISH = r"A dish of (?P<object>[a-z ]{2,40}) with (?P<attributes>[a-z ,]{2,80})\."


def own(folder: Path, prompt: str = "Which dish is it?", pattern: str = DISH, more: str = "") -> DescribeConfig:
    file = folder / "dishes.toml"
    file.write_text(f"prompt = {json.dumps(prompt)}\npattern = {json.dumps(pattern)}\n{more}")
    return DescribeConfig(captioner="openai:tiny", template=str(file))


def test_an_operators_own_template_parses_replies_by_the_groups_of_its_pattern(tmp_path: Path) -> None:
    template = load(own(tmp_path))
    assert (template.prompt, template.server_pattern) == ("Which dish is it?", r"A dish of ([a-z ]{2,40}) with ([a-z ,]{2,80})\.")
    answer = template.read("A dish of fried rice\nwith peas, egg and spring onions.")
    assert (answer.object, answer.attributes, answer.status) == ("fried rice", ("peas", "egg", "spring onions"), DESCRIBED)


def test_a_template_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    config = own(tmp_path)
    before, file = load(config), tmp_path / "dishes.toml"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert load(config) == before


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("This image contains a cat characterised by grey fur, green eyes and a long tail.", FREE),
        ("Well: A dish of fried rice with peas.", FREE),
        ("", FAILED),
        ("I'm sorry, I can't.", FAILED),
        ("x" * TOO_LONG, FAILED),
    ],
)
def test_a_reply_outside_an_operators_own_template_is_free_text_or_a_failure(tmp_path: Path, reply: str, status: str) -> None:
    assert load(own(tmp_path)).read(reply).status == status


def test_a_pattern_that_takes_too_long_on_a_reply_does_not_match() -> None:
    started = time.monotonic()
    assert Template("Which dish is it?", r"(?P<object>(\w+ ?)+)\.").read("fried rice with peas and egg and " * 6 + "!").status == FREE
    assert time.monotonic() - started < 60


@given(st.text())
def test_no_reply_makes_an_own_template_raise(reply: str) -> None:
    assert Template("Which dish is it?", DISH).read(reply).status in (DESCRIBED, FREE, FAILED)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompt": ""}, "must contain two texts, `prompt` and `pattern`"),
        ({"more": "other = 1"}, "must contain two texts, `prompt` and `pattern`"),
        ({"more": "torn"}, "no TOML file can be read there"),
        ({"prompt": "x" * 4001}, "its prompt has 4,001 characters; at most 4,000"),
        ({"pattern": f"(?P<object>x){'y' * 2000}"}, "its pattern has 2,013 characters; at most 2,000"),
        ({"pattern": "(?P<object>x"}, "its pattern is not a regular expression"),
        ({"pattern": "(?P<object>.*?) and (?P=object)"}, "refers to its groups by name"),
        ({"pattern": "x"}, "its pattern must have a group"),
        ({"pattern": "(?P<object>x)(?P<colour>y)"}, "no other groups"),
    ],
)
def test_an_invalid_template_file_is_refused(tmp_path: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(Refused, match=rf"^describe\.template = .*dishes\.toml: .*{says}"):
        load(own(tmp_path, **settings))


def test_a_missing_template_file_is_refused() -> None:
    with pytest.raises(Refused, match="no TOML file can be read there"):
        load(DescribeConfig(captioner="openai:tiny", template="nowhere.toml"))


def test_template_and_criterion_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Give only one of them"):
        load(own(tmp_path).model_copy(update={"criterion": "the dish"}))
