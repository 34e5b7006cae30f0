"""Acts of curation are seen by the next question to the collection."""

import numpy as np
import pytest

from gsec_core import curation
from gsec_core.errors import NotFound
from gsec_core.explore import Collection, collection

from .examples import by_uri, everything, placed


def test_each_act_of_curation_is_seen_by_the_next_question(copied: Collection) -> None:
    large, small = copied.clusters()
    version = copied.version
    curation.add(copied.context, "rename", who="me", key=large.key, text="<b>discs</b>")
    assert copied.version != version
    assert copied.cluster(large.key).name == "<b>discs</b>"
    assert copied.cluster(large.key).curated
    assert copied.cluster(large.key).cohesion == large.cohesion
    images = [row.id for row in copied.images(small.key).rows[:2]]
    curation.add(copied.context, "move", who="me", key=large.key, images=images)
    moved = copied.image(images[0], wait=0)
    assert (moved.row.key, moved.model_key) == (large.key, small.key)
    assert copied.cluster(large.key).size == large.size + 2
    assert copied.cluster(large.key).cohesion is None
    curation.add(copied.context, "hide", who="me", images=images[:1])
    assert copied.cluster(large.key).size == large.size + 1
    assert images[0] not in [row.id for row in everything(copied)]
    assert images[0] in [row.id for row in everything(copied, hidden=True)]
    assert images[0] not in [row.id for row in copied.like(images[1], limit=100).rows]
    curation.add(copied.context, "hide", who="me", key=small.key)
    assert [row.key for row in copied.clusters()] == [large.key]
    assert {row.key: row.size for row in copied.clusters(hidden=True)} == {large.key: large.size + 1, small.key: small.size - 2}
    points = np.frombuffer(copied.map_points(), "<u2").reshape(-1, 3)
    hidden = {row.id for row in everything(copied, hidden=True) if row.hidden}
    assert len(hidden) == 1 + small.size - 2
    assert [place == collection.NOWHERE for place in points[:, 2]] == [id in hidden for id in placed(copied)]
    log = copied.curation()
    assert [(row.number, row.kind) for row in log.rows] == [(4, "hide"), (3, "hide"), (2, "move"), (1, "rename")]


def test_the_second_choice_is_always_an_existing_curated_cluster(copied: Collection) -> None:
    id = by_uri(copied, "000.jpg")
    before = copied.image(id, wait=60)
    assert before.second
    curation.add(copied.context, "rename", who="me", key=before.second[0], text="others")
    assert copied.image(id, wait=60).second == (before.second[0], "others")
    part = curation.add(copied.context, "split", who="me", key=before.row.key, parts=2).keys[0]
    other = part if copied.image(id, wait=60).row.key == before.row.key else before.row.key
    curation.add(copied.context, "merge", who="me", key=other, keys=[before.second[0]])
    assert copied.image(id, wait=60).second == (other, copied.cluster(other).name)
    curation.add(copied.context, "merge", who="me", key=copied.image(id, wait=60).row.key, keys=[other])
    assert copied.image(id, wait=60).second is None


def test_a_map_is_made_from_a_single_state_of_the_log(copied: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = copied.clusters()
    points = copied._points()

    def meanwhile() -> object:
        curation.add(copied.context, "merge", who="me", key=small.key, keys=[large.key])
        return points

    with monkeypatch.context() as patched:
        patched.setattr(copied, "_points", meanwhile)
        places = np.frombuffer(copied.map_points(), "<u2").reshape(-1, 3)[:, 2]
    assert set(places.tolist()) == {0, 1}
    assert set(np.frombuffer(copied.map_points(), "<u2").reshape(-1, 3)[:, 2].tolist()) == {0}


def test_split_and_merged_clusters_have_the_right_images(copied: Collection) -> None:
    large, small = copied.clusters()
    act = curation.add(copied.context, "split", who="me", key=large.key, parts=2)
    parts = [row for row in copied.clusters() if row.key in (large.key, *act.keys)]
    assert sum(row.size for row in parts) == large.size
    assert all(row.terms == () for row in parts if row.key in act.keys)
    curation.add(copied.context, "merge", who="me", key=act.keys[0], keys=[small.key])
    assert copied.cluster(act.keys[0]).merged == (small.key,)
    with pytest.raises(NotFound, match=f"cluster {small.key} is part of cluster {act.keys[0]} now"):
        copied.cluster(small.key)
    assert sum(row.size for row in copied.clusters()) == len(copied)
