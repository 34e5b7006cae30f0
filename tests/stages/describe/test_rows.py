"""The rows and figures of stage describe, and the check of the captioner before it."""

from pathlib import Path

import pytest

from gsec_core import pipeline
from gsec_core.captioners.base import Answer
from gsec_core.errors import Refused, Unreachable
from gsec_core.stages import describe, prototypes
from gsec_core.stages.base import work
from gsec_core.tables import DESCRIBED, FAILED, FREE, REPRESENTATIVE_CAPTIONS, REPRESENTATIVE_CAPTIONS_TABLE, REPRESENTATIVES_TABLE

from ..steps import run_stages
from .examples import BEFORE, IMAGES, Fake, Install, config_of, fail_at, named, rows, run, unfinished


def test_every_representative_has_a_row_in_the_same_order(place: Path, captioner: Fake) -> None:
    context, _ = run(config_of(place, representatives=2))
    table = context.read(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE)
    assert table.schema.equals(REPRESENTATIVE_CAPTIONS)
    representatives = context.read(prototypes.STAGE, REPRESENTATIVES_TABLE)
    for column in ("prototype", "band", "image_id", "content_hash"):
        assert table[column] == representatives[column]
    assert table["text"].to_pylist() == [named(uri) for uri in representatives["uri"].to_pylist()]
    assert table["object"].to_pylist() == representatives["uri"].to_pylist()
    assert set(map(tuple, table["attributes"].to_pylist())) == {("small",)}
    assert set(table["model"].to_pylist()) == {"fake"}


def test_the_facts_count_requests_and_descriptions_by_status(place: Path, captioner: Fake) -> None:
    statuses = iter([FREE, FAILED, FAILED])
    captioner.answer = lambda subject: Answer("some text", None, (), next(statuses, DESCRIBED))
    context, made = run(config_of(place))
    found = {"representatives": IMAGES, "asked": IMAGES, "known": 0, "described": IMAGES - 3, "free": 1, "failed": 2, "missing": 0}
    assert {**found, "shards": 1} == made
    facts = context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).facts("all")
    assert {key: facts[key] for key in found} == found


def test_the_progress_adds_up_to_the_planned_units_also_after_an_interruption(place: Path, install: Install) -> None:
    install(Fake(first=fail_at(5)))
    context = unfinished(config_of(place), Unreachable)
    install(Fake())
    [step] = describe.STAGE.steps
    told: list[int] = []
    work(context, describe.STAGE, step, ["all"], told.append)
    assert sum(told) == step.units(context, ["all"]) == IMAGES


def test_without_other_settings_the_tagger_describes_every_representative(place: Path) -> None:
    context, made = run(config_of(place, representatives=1))
    assert made["described"] == made["asked"] == made["representatives"] == 4
    assert {row["model"] for row in rows(context)} == {"tagger"}
    assert all(row["text"] and row["object"] and row["attributes"] for row in rows(context))


def test_the_captioner_is_loaded_once_per_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(describe, "load_captioner", lambda config, **kwargs: loaded.append(kwargs) or Fake())
    monkeypatch.setattr(describe, "captioner_identity", lambda config: {"name": "loaded once"})
    assert describe.loaded_captioner(config_of(place)) is describe.loaded_captioner(config_of(place, count=3))
    assert loaded == [{"device": "auto", "threads": 1}]


def test_the_check_of_an_unreachable_captioner_is_refused_before_any_stage(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place))
    with pytest.raises(Refused, match="nobody is there"):
        describe.loaded_captioner(context.config).check()


def test_a_captioner_that_a_run_needs_is_checked_before_its_first_stage_and_before_describe(place: Path, captioner: Fake) -> None:
    with pytest.raises(Refused, match="nobody is there"):
        pipeline.check_servers(run_stages(config_of(place)))
    with pytest.raises(Refused, match="nobody is there"):
        pipeline.check_servers(run_stages(config_of(place), *BEFORE))


@pytest.mark.parametrize("clusters", [2, 3], ids=["the same run", "a run with other clusters"])
def test_a_run_whose_descriptions_exist_needs_no_captioner(place: Path, captioner: Fake, clusters: int) -> None:
    run(config_of(place))
    # A run with other clusters has no baseline yet, but its descriptions are found without it.
    pipeline.check_servers(run_stages(config_of(place, clusters=clusters)))
