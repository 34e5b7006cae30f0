"""The roots: the places that a deployed flow may read and write."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from flows import roots
from flows.pipeline import Redo
from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.settings import load_config
from gsec_core.stages.describe import RETRY

from ..stages.steps import STAGES


@pytest.fixture
def allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a deployed flow, whose roots are this folder, a folder in a bucket, a server and a Ray cluster."""
    folder = tmp_path / "allowed"
    folder.mkdir()
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
    monkeypatch.setenv(roots.VARIABLE, f"{folder}, s3://photos/2026,http://captions:8000/v1,ray://head:6379")
    return folder


def config(allowed: Path, **settings: object) -> PipelineConfig:
    return load_config(overrides={"source": str(allowed / "in"), "store": str(allowed / "store"), **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"source": "s3://photos/2026"},
        {"source": "s3://photos/2026/may/*.parquet"},
        {"describe": {"captioner": "openai:m", "url": "http://captions:8000/v1"}},
        {"describe": {"url": "http://other:8000/v1"}},  # without such a captioner, the address is not used
        {"engine": "ray"},
        {"engine": "ray", "ray": {"address": "auto"}},
        {"engine": "ray", "ray": {"address": "head:6379"}},
        {"ray": {"address": "other:6379"}},  # without engine = ray, the address is not used
        {"encode": {"encoder": "open_clip:ViT-B-32:laion2b_s34b_b79k"}},
    ],
)
def test_places_under_a_root_are_allowed(settings: dict[str, object], allowed: Path) -> None:
    roots.check(config(allowed, **settings))


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("ray.address", {"engine": "ray", "ray": {"address": "other:6379"}}),
        ("ray.address", {"engine": "ray", "ray": {"address": "ray://head:10001"}}),
        ("source", {"source": "/etc"}),
        ("source", {"source": "{allowed}/../secret"}),
        ("source", {"source": "{allowed}-too"}),
        ("source", {"source": "s3://photos/2026-private"}),
        ("source", {"source": "s3://photos/2026/../2025"}),
        ("source", {"source": "s3://photos-other/2026"}),
        ("source", {"source": "gs://photos/2026"}),
        ("source", {"source": "{allowed}/link"}),
        ("store", {"store": "/var/store"}),
        ("store", {"store": "s3://photos"}),
        ("scratch", {"scratch": "/var/tmp"}),
        ("encode.encoder", {"encode": {"encoder": "open_clip:ViT-B-32:/etc/hostname"}}),
        ("encode.encoder", {"encode": {"encoder": "open_clip:local-dir:/models/x"}}),
        ("text.encoder", {"text": {"source": "encoder", "encoder": "open_clip:local-dir:/models/x"}}),
        ("describe.captioner", {"describe": {"captioner": "table:/home/me/private.csv:text"}}),
        ("describe.template", {"describe": {"template": "/etc/passwd"}}),
        ("describe.url", {"describe": {"captioner": "openai:m", "url": "http://captions:8001/v1"}}),
        ("describe.url", {"describe": {"captioner": "openai:m", "url": "http://captions:8000/v1,http://evil/v1"}}),
        ("describe.url", {"publish": {"namer": "openai:m"}, "describe": {"url": "http://evil/v1"}}),
    ],
)
def test_places_outside_all_roots_are_refused(setting: str, settings: dict[str, object], allowed: Path, tmp_path: Path) -> None:
    (allowed / "link").symlink_to(tmp_path)
    filled = {name: value.format(allowed=allowed) if isinstance(value, str) else value for name, value in settings.items()}
    with pytest.raises(Refused) as refused:
        roots.check(config(allowed, **filled))
    assert str(refused.value).startswith(f"{setting} = ")
    assert "GSEC_ROOTS" in str(refused.value)


def test_without_roots_nothing_is_allowed(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(roots.VARIABLE)
    with pytest.raises(Refused, match="under nothing"):
        roots.check(config(allowed))


def test_roots_do_not_bind_runs_outside_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(roots.VARIABLE, "/nowhere")
    roots.check(load_config(overrides={"source": "/etc", "store": "/var/store"}))


def test_the_form_of_a_deployment_offers_every_stage_for_redo() -> None:
    offered = TypeAdapter(Redo).json_schema()["enum"]
    assert {stage.name for stage in STAGES} | {RETRY} <= set(offered)


def test_roots_bind_the_maintenance_flow_too(allowed: Path) -> None:
    roots.check_store(str(allowed / "store"))
    with pytest.raises(Refused, match="store = /elsewhere"):
        roots.check_store("/elsewhere")
