"""The choice of the engine by the settings. A real Ray cluster is in `tests/real/test_ray.py`."""

import sys

import pytest

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from tasks import engine


def test_engine_ray_without_the_package_ray_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name == "tasks.cluster" or name.startswith("prefect_ray")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(Refused, match=r'engine = ray: ray is not installed here. Install it with gsec: pip install "gsec\[ray\]"'), engine.opened(on("ray")):
        pass


def test_an_open_engine_is_reused_inside_and_a_new_one_is_opened_afterwards() -> None:
    with engine.opened(on("threads")) as outer, engine.opened(on("ray")) as inner:
        assert inner is outer
    with engine.opened(on("threads")) as another:
        assert another is not outer


def test_progress_of_a_slice_whose_process_died_is_taken_back_when_it_begins_again() -> None:
    from tasks.cluster import _Told

    told = _Told()
    for slice, done in (("first", 8), ("second", 3)):
        told.begin(slice)
        told.add(slice, {"encode": done})
    assert told.take() == {"encode": 11}
    told.begin("second")  # the driver was told of its 3 images, which are encoded again
    told.add("second", {"encode": 5})
    told.add("second", {"encode": 3})
    assert told.take() == {"encode": 5}, "19 images in all would be more than there are"
    told.begin("second")
    assert told.take() == {"encode": -8}


def on(name: str) -> PipelineConfig:
    return PipelineConfig.model_validate({"engine": name})
