"""What a deployed flow may touch."""

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
    """As a worker runs a flow of a deployment; its roots are a folder, a bucket's folder and a server."""
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
        {"describe": {"url": "http://other:8000/v1"}},  # nobody is asked there
        {"engine": "ray"},
        {"engine": "ray", "ray": {"address": "auto"}},
        {"engine": "ray", "ray": {"address": "head:6379"}},
        {"ray": {"address": "other:6379"}},  # no engine
        {"encode": {"encoder": "open_clip:ViT-B-32:laion2b_s34b_b79k"}},
    ],
)
def test_what_is_under_a_root(settings: dict[str, object], allowed: Path) -> None:
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
def test_what_is_elsewhere_is_refused(setting: str, settings: dict[str, object], allowed: Path, tmp_path: Path) -> None:
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


def test_a_users_own_shell_is_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(roots.VARIABLE, "/nowhere")
    roots.check(load_config(overrides={"source": "/etc", "store": "/var/store"}))


def test_the_form_offers_every_stage_to_be_done_anew() -> None:
    offered = TypeAdapter(Redo).json_schema()["enum"]
    assert {stage.name for stage in STAGES} | {RETRY} <= set(offered)


def test_maintenance_is_bound_too(allowed: Path) -> None:
    roots.check_store(str(allowed / "store"))
    with pytest.raises(Refused, match="store = /elsewhere"):
        roots.check_store("/elsewhere")
