"""The replay: the effect of acts of curation on a run's clusters."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.curation import Act, Curated, Image, Model, replay
from gsec_core.curation.log import DESCRIBE, HIDE, MERGE, MOVE, RENAME, SHOW, SPLIT, STAR, UNDO, packed

from ..store.examples import reproducible
from .examples import ENCODER, content, image_id, model, random_act, slowly, told


def acts(*said: Act) -> list[Act]:
    return [replace(act, number=number) for number, act in enumerate(said, 1)]


def act(kind: str, key: int | None = None, **more: object) -> Act:
    return Act(kind, "ann", "2026-01-01T00:00:00.000+00:00", None, key, **more)  # type: ignore[arg-type]


def images(*numbers: int) -> tuple[Image, ...]:
    return tuple(Image(image_id(number), content(number)) for number in numbers)


def split(key: int, *keys: int, encoder: str = ENCODER, seed: int = 0) -> Act:
    return act(SPLIT, key, keys=keys, centres=packed(np.random.default_rng(seed).standard_normal((len(keys) + 1, 3))), encoder=encoder)


def names(found: Curated) -> dict[int, str]:
    return {cluster.key: cluster.name for cluster in found.clusters}


def why(found: Curated) -> dict[int, str]:
    return {one.act.number: one.why for one in found.open}


NIGHTS = [model(), model(without=[3, 4], changed=[5]), model(keys=[0, 1, 5]), model(images=1), model(encoder="new")]


@reproducible(250)
@given(st.integers(0, 2**32), st.integers(0, 40), st.sampled_from(NIGHTS))
def test_a_replay_of_random_acts_equals_the_slow_reference_that_goes_image_by_image(seed: int, count: int, of: Model) -> None:
    random, said = Random(seed), list[Act]()
    for number in range(1, count + 1):
        said.append(replace(random_act(random, said), number=number))
    found = replay(said, of)
    assert told(found, of) == slowly(said, of)
    assert (found.acts, found.last) == (count, count)


def test_without_acts_the_replay_is_the_models_own_clustering() -> None:
    found = replay([], model())
    assert found.keys.tolist() == model().keys.tolist()
    assert names(found) == {number: f"cluster {number}" for number in range(4)}
    assert not any(cluster.curated for cluster in found.clusters)
    assert (found.acts, found.last, found.open) == (0, 0, ())


def test_a_name_stays_over_several_nights_and_the_later_of_two_counts() -> None:
    said = acts(act(RENAME, 1, text="birds"), act(RENAME, 0, text="airplanes"), act(RENAME, 1, text="gulls"), act(DESCRIBE, 0, text="They fly."))
    for night in (model(), model(images=40), model(keys=[7, 0, 1])):
        found = replay(said, night)
        assert (found.of_model(0).name, found.of_model(0).description, found.of_model(1).name) == ("airplanes", "They fly.", "gulls")
        assert found.of_model(0).curated
        assert found.of_model(0).model_name == "cluster 0"


def test_a_cluster_that_lost_images_is_curated_until_that_is_undone() -> None:
    moved = act(MOVE, 1, images=images(0, 4))  # both are in cluster 0
    assert [cluster.curated for cluster in replay(acts(moved), model()).clusters] == [True, True, False, False]
    assert not any(cluster.curated for cluster in replay(acts(moved, act(UNDO, undoes=1)), model()).clusters)


def test_merges_of_merges_lead_to_one_cluster_that_lists_its_parts() -> None:
    found = replay(acts(act(MERGE, 1, keys=(0,)), act(MERGE, 2, keys=(1,)), act(RENAME, 2, text="all")), model())
    assert set(found.keys.tolist()) == {2, 3}
    assert [cluster.merged for cluster in found.clusters] == [(1, 0), ()]
    assert (found.of_model(0).name, found.into) == ("all", {0: 2, 1: 2})


def test_an_act_about_a_merged_cluster_is_open_and_merges_cannot_be_cyclic() -> None:
    found = replay(acts(act(MERGE, 0, keys=(1,)), act(RENAME, 1, text="late"), act(MERGE, 1, keys=(0,)), act(MERGE, 2, keys=(2,))), model())
    assert why(found) == {
        2: "cluster 1 is part of cluster 0 since act 1.",
        3: "cluster 1 is part of cluster 0 since act 1.",
        4: "a cluster cannot be merged with itself.",
    }
    assert set(found.keys.tolist()) == {0, 2, 3}


def test_an_act_about_a_cluster_whose_merged_cluster_was_merged_names_the_cluster_that_has_the_images() -> None:
    found = replay(acts(act(MERGE, 1, keys=(2,)), act(MERGE, 3, keys=(1,)), act(RENAME, 2, text="late")), model())
    assert why(found) == {3: "cluster 2 is part of cluster 3 since act 2."}


def test_a_merge_with_a_missing_cluster_still_merges_the_others() -> None:
    found = replay(acts(act(MERGE, 0, keys=(1, 9))), model())
    assert why(found) == {1: "there is no cluster 9 in this run."}
    assert set(found.keys.tolist()) == {0, 2, 3}


def test_an_act_about_a_missing_cluster_is_open_until_the_cluster_returns() -> None:
    said = acts(act(RENAME, 3, text="airplanes"))
    assert why(replay(said, model(clusters=3))) == {1: "there is no cluster 3 in this run."}
    back = replay(said, model())
    assert (back.open, back.of_model(3).name) == ((), "airplanes")


def test_after_a_split_later_images_go_to_the_nearest_part_and_images_can_be_moved_into_parts() -> None:
    said = acts(split(0, 1_000_000), act(RENAME, 1_000_000, text="odd ones"), act(MOVE, 1_000_000, images=images(0, 1)))
    few, many = replay(said, model(images=12)), replay(said, model(images=120))
    assert many.keys[:12].tolist() == few.keys.tolist()
    assert set(many.keys[12::4].tolist()) == {0, 1_000_000}
    assert many.keys[:2].tolist() == [1_000_000, 1_000_000]
    assert (names(many)[0], names(many)[1_000_000]) == ("cluster 0", "odd ones")
    again = replay(acts(act(MOVE, 0, images=images(1)), split(0, 1_000_000)), model())
    assert again.keys[1] == slowly(acts(act(MOVE, 0, images=images(1)), split(0, 1_000_000)), model()).keys[image_id(1)], (
        "an image moved in before the split must be split like the others"
    )


def test_parts_of_a_split_are_named_after_the_cluster_and_hidden_with_it() -> None:
    found = replay(acts(act(HIDE, 0), split(0, 1_000_000, 1_000_001), act(MERGE, 0, keys=(1_000_000,)), split(0, 1_000_002)), model())
    assert names(found) | {1: "", 2: "", 3: ""} == {0: "cluster 0", 1: "", 2: "", 3: "", 1_000_001: "cluster 0 (3)", 1_000_002: "cluster 0 (2)"}
    assert found.hidden.tolist() == [number % 4 == 0 for number in range(12)]


def test_a_split_by_another_encoder_is_open() -> None:
    found = replay(acts(split(0, 1_000_000), act(RENAME, 1_000_000, text="part")), model(encoder="open_clip:ViT-B-32:openai"))
    assert why(found) == {
        1: "it was split with encoder lite, and the run's is open_clip:ViT-B-32:openai.",
        2: "there is no cluster 1000000, as act 1, which makes it, is undone or open.",
    }
    short = replace(split(0, 1_000_000), centres=packed(np.eye(2)))
    assert "not of the length" in why(replay(acts(short), model()))[1]


def test_a_move_of_missing_or_changed_images_is_open_but_moves_the_others() -> None:
    found = replay(acts(act(MOVE, 3, images=images(0, 1, 2))), model(without=[0], changed=[1]))
    assert why(found) == {1: "1 of its 3 images is not in this run (deleted or renamed), and 1 of its 3 images has other bytes now."}
    assert found.keys[:2].tolist() == [1, 3]
    assert replay(acts(act(MOVE, 3, images=images(0, 1, 2))), model()).keys[:3].tolist() == [3, 3, 3]


def test_a_hidden_cluster_hides_its_final_images_and_a_hidden_image_stays_hidden_when_moved() -> None:
    said = acts(act(HIDE, 0), act(MOVE, 0, images=images(1)), act(HIDE, images=images(2)), act(MOVE, 3, images=images(2)), act(STAR, images=images(3)))
    found = replay(said, model())
    assert np.flatnonzero(found.hidden).tolist() == [0, 1, 2, 4, 8]
    assert np.flatnonzero(found.starred).tolist() == [3]
    assert np.flatnonzero(replay(acts(*said, act(SHOW, 0)), model()).hidden).tolist() == [2]


def test_an_act_can_be_undone_and_an_undo_can_be_undone() -> None:
    said = acts(act(RENAME, 0, text="birds"), act(UNDO, undoes=1), act(UNDO, undoes=2), act(UNDO, undoes=9), act(UNDO, undoes=5))
    assert names(replay(said[:1], model()))[0] == "birds"
    gone = replay(said[:2], model())
    assert (names(gone)[0], gone.open, gone.undone) == ("cluster 0", (), {1: 2})
    back = replay(said, model())
    assert (names(back)[0], back.undone) == ("birds", {2: 3})
    assert why(back) == {4: "there is no act 9 before it.", 5: "there is no act 5 before it."}


def test_acts_that_depend_on_an_undone_act_become_open() -> None:
    said = acts(split(0, 1_000_000), act(RENAME, 1_000_000, text="part"), act(MOVE, 1_000_000, images=images(1)), act(UNDO, undoes=1))
    found = replay(said, model())
    assert list(why(found)) == [2, 3]
    assert found.keys.tolist() == model().keys.tolist()
    assert replay(acts(*said, act(UNDO, undoes=4)), model()).open == ()


@pytest.mark.parametrize(("kind", "unknown", "says"), [("recolour", ("kind",), "the kind recolour"), (RENAME, ("colour",), "colour of a rename")])
def test_an_act_of_a_newer_gsec_is_open_until_it_is_undone(kind: str, unknown: tuple[str, ...], says: str) -> None:
    said = acts(Act(kind, "ann", "2026", unknown=unknown), act(RENAME, 1, text="birds"))
    found = replay(said, model())
    assert why(found) == {1: f"a newer gsec wrote it, and this version does not know {says}."}
    assert names(found)[1] == "birds"
    assert replay(acts(*said, act(UNDO, undoes=1)), model()).open == ()
