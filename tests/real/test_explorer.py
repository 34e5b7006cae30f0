"""The explorer in a real browser, on crops of the demo's photographs, used as a curator does."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from flows.demo import photographs
from flows.serve.app import application
from gsec_core.config import PipelineConfig
from gsec_core.curation import add, curated
from gsec_core.results import finishing
from gsec_core.stages.base import Context
from gsec_core.store import Store

from ..pictures import cluster, settings
from .browser import loaded, mark_scrolled, overflow, serving, watched

TOKEN = "a long random text"

SHOWN = ("chelsea", "coffee", "rocket", "hubble_deep_field", "retina")

CROPS = 14

HOSTILE = "<img src=x onerror=alert(1)>.jpg"


@dataclass
class Served:
    """A running server with curation, for a store with a published run."""

    url: str
    context: Context

    @property
    def base(self) -> str:
        return f"{self.url}/runs/{self.context.run.id}"


def crops(folder: Path, numbers: range) -> None:
    """Write one crop of each photograph per number."""
    for name, photograph in photographs():
        if name not in SHOWN:
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            side = min(photograph.size) // 2 + 3 * number
            left, top = (number * 7) % (photograph.width - side), (number * 5) % (photograph.height - side)
            photograph.crop((left, top, left + side, top + side)).resize((160, 160)).save(folder / name / f"{number:02d}.jpg", quality=90)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    folder = tmp_path_factory.mktemp("explorer")
    crops(folder / "in", range(CROPS))
    (folder / "in" / "chelsea" / "00.jpg").rename(folder / "in" / "chelsea" / HOSTILE)
    return settings(folder / "in", folder / "store", pipeline="photos", clusters=len(SHOWN), train={"refit": "auto"})


@pytest.fixture(scope="module")
def served(config: PipelineConfig) -> Iterator[Served]:
    context, _, _ = cluster(config)
    assert finishing.finish(context)["published"]
    with serving(application([Store.open(config.store)], TOKEN, curate=True, by_link=True)) as url:
        yield Served(url, context)


@contextmanager
def opened(browser: Browser, served: Served, **window: Any) -> Iterator[Page]:
    """A browser logged in by the link, which may request nothing elsewhere; see `watched`."""
    with watched(browser, served.url, **window) as page:
        page.goto(f"{served.url}/?token={TOKEN}")
        yield page


def cat(page: Page, served: Served) -> str:
    """Search for a cat and open the first image found. Returns the key of its cluster."""
    page.goto(f"{served.base}/explore")
    page.get_by_role("searchbox", name="Search the images").fill("a cat")
    page.keyboard.press("Enter")
    page.locator(".images a.shot").first.click()
    link = page.locator("dl.pairs a[href*='/clusters/']").first
    found = re.search(r"/clusters/(\d+)", str(link.get_attribute("href")))
    assert found
    return found[1]


def test_a_curator_can_search_rename_move_merge_and_undo_on_the_pages(browser: Browser, served: Served) -> None:
    """The test follows the links and forms of the pages, and undoes the move and the merge."""
    with opened(browser, served) as page:
        page.get_by_role("link", name="Explore photos").click()
        expect(page.locator("h1")).to_have_text(f"{CROPS * len(SHOWN)} images in {len(SHOWN)} clusters")
        assert all(loaded(picture) for picture in page.locator(".four img").all()[:8])
        key = cat(page, served)
        page.go_back()
        uris = page.locator(".images .uri").evaluate_all("all => all.map(uri => uri.title)")
        assert all(uri.startswith("chelsea/") for uri in uris[: CROPS // 2]), uris[:12]

        page.goto(f"{served.base}/clusters/{key}")
        name = page.locator("h1").inner_text()
        page.locator(".acts summary").click()
        page.get_by_label("Name", exact=True).fill("<b>Chelsea</b>")
        page.get_by_role("button", name="Rename").click()
        expect(page.get_by_role("status").first).to_contain_text("Renamed cluster")
        expect(page.locator("h1")).to_have_text("<b>Chelsea</b>")
        page.reload()
        expect(page.locator("h1")).to_have_text("<b>Chelsea</b>")

        boxes = page.locator("input[name=image]")
        boxes.nth(1).check()
        boxes.nth(3).click(modifiers=["Shift"])
        expect(page.locator("#chosen-count")).to_have_text("3 selected")
        page.get_by_label("Cluster to move them to").select_option(index=1)
        page.get_by_role("button", name="Move").click()
        expect(page.get_by_role("status").first).to_contain_text("Moved 3 images")
        size = page.locator("dl.facts dd").first
        expect(size).to_have_text(str(CROPS - 3))
        page.get_by_role("button", name="Undo").click()
        expect(size).to_have_text(str(CROPS))

        page.locator(".acts summary").click()
        page.get_by_label("Merge into").select_option(index=1)
        page.get_by_role("button", name="Merge", exact=True).click()
        expect(page.get_by_role("status").first).to_contain_text(f"Merged cluster {key} into")
        page.get_by_role("link", name="Clusters", exact=True).click()
        expect(page.locator("h1")).to_contain_text(f"in {len(SHOWN) - 1} clusters")
        page.get_by_role("link", name="Curation log").click()
        page.get_by_role("button", name="Undo").first.click()
        page.get_by_role("link", name="Clusters", exact=True).click()
        expect(page.locator("h1")).to_contain_text(f"in {len(SHOWN)} clusters")
        expect(page.get_by_role("link", name="<b>Chelsea</b>")).to_have_count(1)
        assert name != "<b>Chelsea</b>"


def test_acts_can_be_sent_and_undone_without_scripts(browser: Browser, served: Served) -> None:
    with opened(browser, served, scripts=False) as page:
        page.goto(f"{served.base}/clusters/1")
        page.locator("input[name=image]").first.check()
        page.get_by_role("button", name="Star", exact=True).last.click()
        expect(page.get_by_role("status").first).to_contain_text("Starred 1 image")
        page.get_by_role("button", name="Undo").click()
        expect(page.locator(".images .starred")).to_have_count(0)


def test_arrow_keys_step_through_a_gallery_and_its_pages(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.goto(f"{served.base}/images?sort=name&order=ascending")
        page.locator(".images a.shot").nth(58).click()
        page.wait_for_url(re.compile("at=59"))
        names = [page.locator("h1").inner_text()]
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft"):
            before = page.url
            page.keyboard.press(key)
            page.wait_for_url(lambda url, before=before: url != before)
            names.append(page.locator("h1").inner_text())
        assert names[0] == names[4] != names[1] == names[3] != names[2]
        page.get_by_role("link", name=re.compile(rf"59 of {CROPS * len(SHOWN)}")).click()
        expect(page.locator(".images > li")).to_have_count(60)
        page.wait_for_load_state()  # else the key may come before the script that listens to it
        page.keyboard.press("ArrowRight")
        expect(page.get_by_text("Page 2 of 2")).to_have_count(1)


def test_arrow_keys_scroll_the_table_that_has_the_focus_and_leave_its_page_open(browser: Browser, served: Served) -> None:
    with opened(browser, served, width=240) as page:
        page.goto(f"{served.base}/images")
        page.locator(".images a.shot").first.click()
        page.wait_for_url(re.compile("at=1"))
        before, table = page.url, page.get_by_role("region", name="Table of publications")
        mark_scrolled(table)
        table.focus()
        page.keyboard.press("ArrowRight")
        expect(table).to_have_attribute("data-scrolled", "")
        assert page.url == before


def test_the_tree_links_clusters_and_the_reports_table_can_be_cut_into_groups(browser: Browser, served: Served) -> None:
    """It tests the explorer's tree, and the report's field that cuts the tree and shows groups in place of terms."""
    with opened(browser, served) as page:
        page.goto(f"{served.base}/explore")
        page.get_by_role("link", name="Tree", exact=True).click()
        clusters = page.locator(".tree .leaf a:visible")
        expect(clusters).to_have_count(len(SHOWN))
        assert loaded(page.locator(".tree img").first)
        name = clusters.first.inner_text()
        clusters.first.click()
        expect(page.locator("h1")).to_have_text(name)

        page.goto(f"{served.base}/report/index.html")
        expect(page.locator("td.group:visible")).to_have_count(0)
        page.locator("details.tree > summary").click()
        page.get_by_label("Groups in the table").fill("2")
        assert len(set(page.locator("td.group:visible").all_inner_texts())) == 2
        expect(page.locator("td.terms:visible")).to_have_count(0)
        assert page.locator(".scroll").first.evaluate("box => box.scrollWidth - box.clientWidth") <= 0
        page.get_by_label("Groups in the table").fill("")
        expect(page.locator("td.terms:visible")).to_have_count(len(SHOWN))


def test_the_map_shows_points_names_them_and_selects_by_lasso_and_keyboard(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.goto(f"{served.base}/map")
        page.locator("#stage[data-ready]").wait_for()
        found = page.locator("#map-canvas").evaluate(POINTS)
        assert len(found["colours"]) >= 4, "every cluster must have points, except perhaps one that is covered by another"
        expect(page.locator("#map-labels span:visible")).not_to_have_count(0)

        page.mouse.move(*found["one"])
        expect(page.locator("#map-tip")).to_be_visible()
        expect(page.locator("#map-tip-uri")).not_to_be_empty()
        assert loaded(page.locator("#map-tip img"))

        box = page.locator("#map-canvas").bounding_box()
        assert box
        corners = [(8, 8), (box["width"] - 8, 8), (box["width"] - 8, box["height"] - 8), (8, box["height"] - 8), (8, 12)]
        page.get_by_role("button", name="Lasso").click()
        for number, (x, y) in enumerate(corners):
            page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
            if number == 0:
                page.mouse.down()
        page.mouse.up()
        page.get_by_role("link", name=f"Open the {CROPS * len(SHOWN)} images in it").click()
        expect(page.get_by_text(f"{CROPS * len(SHOWN)} images", exact=True)).to_have_count(1)
        expect(page.locator("input[name=image]")).to_have_count(60)

        page.go_back()
        page.locator("#stage[data-ready]").wait_for()
        canvas = page.locator("#map-canvas")
        canvas.focus()
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
        expect(page.locator("#map-tip-uri")).not_to_be_empty()
        uri = page.locator("#map-tip-uri").inner_text()
        page.keyboard.press("Enter")
        page.wait_for_url("**/images/*")
        expect(page.locator("dd.uri")).to_have_text(uri)


POINTS = """async canvas => {
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [canvas.width, canvas.height];
    const pen = copy.getContext("2d");
    await new Promise(done => { window.dispatchEvent(new Event("hashchange")); requestAnimationFrame(() => { pen.drawImage(canvas, 0, 0); done(); }); });
    const { data, width } = pen.getImageData(0, 0, copy.width, copy.height);
    const colours = {}, box = canvas.getBoundingClientRect();
    let one = null;
    for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] < 200) continue;
        const hue = [data[i], data[i + 1], data[i + 2]].map(value => value >> 4).join();
        colours[hue] = (colours[hue] || 0) + 1;
        const place = i / 4;
        one ??= [box.left + place % width * box.width / width, box.top + Math.floor(place / width) * box.width / width + 2];
    }
    return { colours: Object.keys(colours).filter(hue => colours[hue] > 5), one };
}"""
"""Returns the colours of the map, and the position of one of its points in the viewport."""


def test_without_webgl_the_map_says_so_and_lists_the_clusters(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        page.goto(f"{served.base}/map")
        expect(page.locator("#map-said")).to_contain_text("no WebGL")
        expect(page.locator(".places a")).to_have_count(len(SHOWN))


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_pages_fit_the_window_and_axe_finds_no_accessibility_fault(browser: Browser, served: Served, width: int, dark: bool, tmp_path: Path) -> None:
    with opened(browser, served, width=width, dark=dark) as page:
        key = cat(page, served)
        image = page.url.partition("?")[0].removeprefix(served.base)
        another = next(one.key for one in curated(served.context).clusters if one.key != int(key))
        long = add(served.context, "rename", who="ann", key=another, text="W" * 200)
        paths = ["/explore", f"/clusters/{key}", "/images", image, "/search?q=cat", "/map", "/duplicates", "/curation"]
        for path in paths:
            page.goto(served.base + path)
            for fold in page.locator("details:not([open]) > summary").all():
                fold.click()
            page.screenshot(path=tmp_path / f"{path.strip('/').replace('/', '-')[:40]}.png")
            assert overflow(page) <= 0, path
            found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
            assert not [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found], path
        add(served.context, "undo", who="ann", undoes=long.number)


def test_hostile_texts_are_shown_as_texts(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.goto(f"{served.base}/images?sort=name&order=ascending")
        hostile = page.get_by_title(HOSTILE)
        expect(hostile).to_have_text(HOSTILE)
        hostile.locator("xpath=ancestor::figure").locator("a").click()
        expect(page.locator("h1")).to_have_text(HOSTILE)
        expect(page.locator("h1 img, [onerror]")).to_have_count(0)


def test_a_form_of_another_site_is_refused_although_the_browser_sends_the_cookie(browser: Browser, served: Served) -> None:
    """The other site is another port of this machine, so the browser sends the cookie with its form."""
    with opened(browser, served) as page:
        token = page.request.get(f"{served.base}/clusters/1").text()
        found = re.search(r'name="token" value="(\w+)"', token)
        assert found
        fields = f"<input name=token value={found[1]}><input name=kind value=rename><input name=key value=1><input name=name value=stolen>"
        form = f'<form method=post action="{served.base}/curation">{fields}</form><script>document.forms[0].submit()</script>'
        other = page.context.new_page()
        other.route("http://127.0.0.1:81/", lambda route: route.fulfill(body=form, content_type="text/html"))
        other.goto("http://127.0.0.1:81/")
        expect(other.locator("body")).to_contain_text("a page of another server")
        page.goto(f"{served.base}/curation")
        expect(page.get_by_text("stolen")).to_have_count(0)


def test_after_the_next_nightly_run_the_curated_name_is_still_shown(browser: Browser, served: Served, config: PipelineConfig) -> None:
    """The next run has new images. The name stays with the cluster, which gets the new cats."""
    with opened(browser, served) as page:
        key = cat(page, served)
        crops(Path(str(config.source)), range(CROPS, CROPS + 3))
        context, _, _ = cluster(config)
        assert finishing.finish(context)["published"]
        assert context.run.id != served.context.run.id
        page.goto(f"{served.url}/explore/photos")
        expect(page.locator("h1")).to_contain_text(f"{(CROPS + 3) * len(SHOWN)} images")
        page.get_by_role("link", name="<b>Chelsea</b>").click()
        page.wait_for_url(f"**/{context.run.id}/clusters/{key}")
        expect(page.locator("dl.facts dd").first).to_have_text(str(CROPS + 3))
        page.goto(f"{served.base}/explore")
        expect(page.locator(".message.older")).to_contain_text("Another run is published now")
