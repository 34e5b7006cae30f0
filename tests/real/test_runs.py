"""Reports of real runs in a real browser."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect

from ..checkpoint import write_checkpoint
from ..command import gsec, last_json
from ..pictures import write_pictures
from .browser import check_report, opened

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-test.parquet"
"""Photographs that are not part of the project. If they are missing, drawn pictures take their place."""

IMAGES = 6_000
"""How many images are clustered: more than the map shows."""

SHORT = ("--set", "prototypes.count=300", "--set", "gsec.max_steps=2", "--set", "train.n_members=1", "--set", "baseline.n_init=1")
"""Settings of a very short training, since only the report is tested."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def images(place: Path) -> Path:
    """A source of IMAGES images."""
    if not CIFAR.exists():
        return write_pictures(place / "pictures", range(IMAGES))
    pq.write_table(pq.read_table(CIFAR).slice(0, IMAGES), place / "photographs.parquet")
    return place / "photographs.parquet"


def test_the_demo_clusters_debians_stamps_and_every_interactive_part_of_its_report_works(browser: Browser, place: Path) -> None:
    result = last_json(gsec("demo", "--directory", place / "demo", "--json", home=place / "prefect", timeout=600))
    assert (result["images"], result["rejected"], result["warnings"]) == (317, 0, [])
    check_report(browser, Path(result["report"]), clusters=result["clusters"])


def test_the_report_of_6000_images_works_and_its_map_shows_5000(browser: Browser, place: Path, images: Path) -> None:
    index = run(place, images, "-k", "10", *SHORT)
    check_report(browser, index, clusters=10)
    assert index.stat().st_size < 20_000_000
    with opened(browser, index) as page:
        assert points(page) == 5_000
        expect(page.get_by_text("5,000 of 6,000 images are shown")).to_be_visible()


def test_the_report_of_a_thousand_clusters_works_and_has_a_page_for_each(browser: Browser, place: Path, images: Path) -> None:
    """It uses the same images, so that they are encoded only once."""
    index = run(place, images, "-k", "1000", *SHORT)
    check_report(browser, index, clusters=1000)
    assert index.stat().st_size < 20_000_000
    assert len(list((index.parent / "clusters").iterdir())) == 1000


def run(place: Path, images: Path, *arguments: str) -> Path:
    """Do a run with a quick encoder of random weights and return its report."""
    if not (checkpoint := place / "clip").exists():
        write_checkpoint(checkpoint)
    done = gsec(
        "run", images, *arguments, "--encoder", f"open_clip:local-dir:{checkpoint}", "--store", place / "store", "--json", home=place / "prefect", timeout=1800
    )
    return Path(last_json(done)["report"])


def points(page: Page) -> int:
    count: int = page.evaluate("JSON.parse(document.getElementById('map-data').textContent).x.length")
    return count
