"""Which engine the settings name. The cluster itself is in `tests/real/test_ray.py`."""

import sys

import pytest

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from tasks import engine


def test_ray_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name == "tasks.cluster" or name.startswith("prefect_ray")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(Refused, match=r'engine = ray: ray is not installed here. Install it with gsec: pip install "gsec\[ray\]"'), engine.opened(on("ray")):
        pass


def test_an_engine_that_is_open_serves_what_is_begun_inside() -> None:
    with engine.opened(on("threads")) as outer, engine.opened(on("ray")) as inner:
        assert inner is outer
    with engine.opened(on("threads")) as another:
        assert another is not outer


def on(name: str) -> PipelineConfig:
    return PipelineConfig.model_validate({"engine": name})
