"""Names of clusters made of the terms in their descriptions."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.naming.terms import LONGEST_NAME, Description, c_tf_idf, name_clusters, name_groups, unique


def described(object: str, *attributes: str) -> Description:
    return Description(f"This image contains a {object} characterised by {', '.join(attributes)}.", object, attributes)


def free(text: str) -> Description:
    return Description(text, None, ())


PETS = [
    [
        described("tabby cat", "grey fur", "bright tones"),
        described("Egyptian cat", "big ears", "bright tones"),
        described("tiger cat", "bright tones", "grey fur"),
    ],
    [described("beagle", "long ears", "bright tones"), described("beagle", "brown fur"), described("toy poodle", "curly fur", "bright tones")],
]


def test_a_cluster_is_named_by_the_noun_that_its_objects_share() -> None:
    assert [name.name for name in name_clusters(PETS)] == ["cat", "beagle"]


def test_the_description_names_the_objects_and_frequent_attributes() -> None:
    cats, dogs = name_clusters(PETS)
    assert cats.description == "Mostly cat; often grey fur and bright tones."
    assert dogs.description == "Mostly beagle and toy poodle."


def test_terms_are_those_that_other_clusters_do_not_have() -> None:
    cats, dogs = name_clusters(PETS)
    assert cats.terms[0] == "cat"
    assert dogs.terms[0] == "beagle"
    assert "grey fur" in cats.terms
    assert not {"bright", "tones", "bright tones"} & {*dogs.terms}, "these terms are more frequent in the other cluster"


def test_a_name_has_two_objects_if_the_first_is_in_fewer_than_half_of_the_descriptions() -> None:
    mixed = [described(thing, "red") for thing in ("van", "van", "ship", "ship", "plane", "lamp")]
    assert name_clusters([mixed, PETS[0]])[0].name == "ship, van"


def test_objects_with_one_head_give_that_head_as_name_and_a_single_object_its_whole_phrase() -> None:
    said = [[described("loaf of bread", "brown"), described("loaf of rye bread", "dark")], [described("slice of bread", "white")]]
    assert [name.name for name in name_clusters(said)] == ["loaf", "slice of bread"]


def test_free_text_gives_a_distinctive_word_as_name_and_a_typical_sentence_as_description() -> None:
    said = [[free("A lighthouse at the sea"), free("The lighthouse in fog"), free("A boat")], [free("A street at night"), free("A street")]]
    coast, street = name_clusters(said)
    assert (coast.name, street.name) == ("lighthouse", "street")
    assert coast.description == "The lighthouse in fog"


@pytest.mark.parametrize(
    ("one", "other"),
    [("एक काली बिल्ली", "पुरानी बस"), ("แมวดำ", "รถบัส"), (unicodedata.normalize("NFD", "une école"), unicodedata.normalize("NFD", "un bâtiment"))],
)
def test_words_keep_their_vowel_signs_and_accents(one: str, other: str) -> None:
    names = [name.name for name in name_clusters([[free(one)], [free(other)]])]
    assert set(names[0].split()) <= set(one.split())
    assert set(names[1].split()) <= set(other.split())


def test_a_cluster_without_descriptions_is_named_by_its_number() -> None:
    nothing, _, blank = name_clusters([[], PETS[0], [free("...")]])
    assert (nothing.name, nothing.description, nothing.terms) == ("cluster 0", None, ())
    assert blank.name == "cluster 2"


def test_of_equal_names_the_first_stays_and_the_others_get_a_distinctive_term_or_a_number() -> None:
    said = [[described("cat", "black fur")], [described("cat", "white fur")], [described("Cat", "white fur")]]
    assert [name.name for name in name_clusters(said)] == ["cat", "cat, white fur", "cat 2"]


def test_a_number_added_to_a_name_does_not_clash_with_an_existing_name() -> None:
    names = unique([("cat", ()), ("cat 2", ()), ("cat", ())])
    assert len({*names}) == 3


def test_a_group_of_clusters_is_named_by_its_distinctive_term() -> None:
    said = [*PETS, [described("red car", "bright tones")], [described("blue car", "long bonnet")], [described("delivery van", "bright tones")]]
    names = [name.name for name in name_groups(said, [[2, 3], [0, 1], [0, 1, 2, 3, 4], [4]])]
    assert names[0] == "car"
    assert names[1] == "cat", "cats are three of the six objects of this group"
    assert len(set(names)) == 4


def test_the_weights_of_terms_are_those_of_the_paper() -> None:
    overall = {"cat": 3, "fur": 4, "dog": 1}
    first, second = c_tf_idf({"cat": 3, "fur": 1}, overall, 2), c_tf_idf({"dog": 1, "fur": 3}, overall, 2)
    assert first["cat"] == pytest.approx(3 / 4 * 0.8472978603872037)  # log(1 + 4 / 3)
    assert second["fur"] == pytest.approx(3 / 4 * 0.6931471805599453)  # log(1 + 4 / 4)


words = st.text(st.sampled_from("abc XYZ,.<=\n'é"), max_size=30)
descriptions = st.builds(Description, words, st.none() | words, st.lists(words, max_size=3).map(tuple))


@given(st.lists(st.lists(descriptions, max_size=4), max_size=6), st.randoms())
def test_names_are_distinct_and_short_and_do_not_depend_on_the_order_of_descriptions(said: list[list[Description]], random: "object") -> None:
    names = name_clusters(said)
    assert len({name.name.casefold() for name in names}) == len(said)
    assert all(0 < len(name.name) <= 2 * LONGEST_NAME and name.name.isprintable() for name in names)
    for cluster in said:
        random.shuffle(cluster)  # type: ignore[attr-defined]
    assert name_clusters(said) == names
