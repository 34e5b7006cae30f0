"""The choice of the engine by the settings. A real Ray cluster is in `tests/real/test_ray.py`."""

import sys

import pytest

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from tasks import engine


def test_engine_ray_without_the_package_ray_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tasks.cluster", raising=False)
    with pytest.raises(Refused, match=r'engine = ray: ray is not installed here. Install it with gsec: pip install "gsec\[ray\]"'), engine.opened(on("ray")):
        pass


def test_an_open_engine_is_reused_inside_and_a_new_one_is_opened_afterwards() -> None:
    with engine.opened(on("threads")) as outer, engine.opened(on("ray")) as inner:
        assert inner is outer
    with engine.opened(on("threads")) as another:
        assert another is not outer


def on(name: str) -> PipelineConfig:
    return PipelineConfig.model_validate({"engine": name})
