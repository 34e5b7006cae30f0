"""The flow and the command that prune stores: what they report, and what happens if a store is damaged."""

import logging
import os
from pathlib import Path

import pytest

from flows import maintenance
from gsec_core import pipeline
from gsec_core.errors import GsecError
from gsec_core.store import prune

from ..command import gsec_here
from ..pictures import settings, write_pictures


def test_files_that_were_not_deleted_are_not_reported_as_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [prune.Deletion("one", "old", lambda: True), prune.Deletion("other", "needed by now", lambda: False)]
    monkeypatch.setattr(prune, "plan", lambda store, keep_runs: found)
    said = gsec_here("prune", "--store", tmp_path).stdout
    assert "1 files were deleted" in said
    assert "other" not in said
    assert "2 files would be deleted" in gsec_here("prune", "--dry-run", "--store", tmp_path).stdout
    shown: list[object] = []
    monkeypatch.setenv("GSEC_ROOTS", str(tmp_path))
    monkeypatch.setattr(maintenance, "get_run_logger", lambda: logging.getLogger())
    monkeypatch.setattr(maintenance.artifacts, "show_deletions", lambda url, deletions, dry_run: shown.append(deletions))
    assert [maintenance.maintenance.fn([str(tmp_path)], dry_run=dry) for dry in (False, True)] == [1, 2]
    assert shown == [[("one", "old")], [("one", "old"), ("other", "needed by now")]]


def test_a_damaged_store_does_not_keep_maintenance_from_pruning_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "damaged" / "published" / "photos" / "00000001.json"
    record.parent.mkdir(parents=True)
    record.write_text("not JSON")
    left = tmp_path / "store" / "photos" / "images" / ".tmp-part"
    pipeline.request(settings(write_pictures(tmp_path / "in", range(3)), tmp_path / "store", corpus="photos"))
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    monkeypatch.setenv("GSEC_ROOTS", str(tmp_path))
    monkeypatch.setattr(maintenance, "get_run_logger", lambda: logging.getLogger())
    monkeypatch.setattr(maintenance.artifacts, "show_deletions", lambda url, deletions, dry_run: None)
    with pytest.raises(GsecError, match=r"damaged/published/photos/00000001\.json"):
        maintenance.maintenance.fn([str(tmp_path / "damaged"), str(tmp_path / "store")])
    assert not left.exists()
