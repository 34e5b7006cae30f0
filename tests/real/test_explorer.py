"""The explorer in a real browser: on the demo's photographs, as somebody who curates them."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from flows.demo import photographs
from flows.serve.app import application
from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.stages.base import Context
from gsec_core.store import Store

from ..pictures import cluster, settings
from .browser import loaded, overflow

TOKEN = "a long random text"

SHOWN = ("chelsea", "coffee", "rocket", "hubble_deep_field", "retina")

CROPS = 14

HOSTILE = "<img src=x onerror=alert(1)>.jpg"


@dataclass
class Served:
    """A server of a store with a published run, that lets clusters be curated."""

    url: str
    context: Context

    @property
    def base(self) -> str:
        return f"{self.url}/runs/{self.context.run.id}"


def crops(folder: Path, numbers: range) -> None:
    """Of each photograph a crop a number."""
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
    assert pipeline.finish(context)["published"]
    listening = socket.create_server(("127.0.0.1", 0))
    app = application([Store.open(config.store)], TOKEN, curate=True, by_link=True)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", context)
    server.should_exit = True
    thread.join(30)


@contextmanager
def opened(browser: Browser, served: Served, *, width: int = 1280, dark: bool = False, scripts: bool = True, touch: bool = False) -> Iterator[Page]:
    """A browser that the link has logged in. Fails at the end if a page complained, opened a dialog, or asked for anything elsewhere."""
    context: BrowserContext = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        java_script_enabled=scripts,
        has_touch=touch,
    )
    page, wrongs = context.new_page(), []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrongs.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: wrongs.append(str(error)))
    page.on("dialog", lambda dialog: (wrongs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: None if request.url.startswith(("data:", served.url)) else wrongs.append(request.url[:200]))
    page.goto(f"{served.url}/?token={TOKEN}")
    yield page
    context.close()
    assert not wrongs, "\n".join(wrongs)


def cat(page: Page, served: Served) -> str:
    """Search for a cat. Returns the key of the cluster that the first image is in."""
    page.goto(f"{served.base}/explore")
    page.get_by_role("searchbox", name="Search the images").fill("a cat")
    page.keyboard.press("Enter")
    page.locator(".images a.shot").first.click()
    link = page.locator("dl.pairs a[href*='/clusters/']").first
    found = re.search(r"/clusters/(\d+)", str(link.get_attribute("href")))
    assert found
    return found[1]


def test_from_the_front_page_to_a_renamed_cluster(browser: Browser, served: Served) -> None:
    """Search, rename, merge, move, and undo it all, as the pages lead."""
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
        expect(page.get_by_role("status").first).to_contain_text("Called cluster")
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


def test_everything_without_a_script(browser: Browser, served: Served) -> None:
    with opened(browser, served, scripts=False) as page:
        page.goto(f"{served.base}/clusters/1")
        page.locator("input[name=image]").first.check()
        page.get_by_role("button", name="Star", exact=True).last.click()
        expect(page.get_by_role("status").first).to_contain_text("Starred 1 image")
        page.get_by_role("button", name="Undo").click()
        expect(page.locator(".images .starred")).to_have_count(0)


def test_arrow_keys_go_through_a_gallery(browser: Browser, served: Served) -> None:
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
        page.keyboard.press("ArrowRight")
        expect(page.get_by_text("Page 2 of 2")).to_have_count(1)


def test_the_tree_leads_to_clusters_and_groups_them(browser: Browser, served: Served) -> None:
    """The explorer's tree, and the cut of the report's, which shows the groups in place of the terms."""
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


def test_the_map_draws_says_and_selects(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.goto(f"{served.base}/map")
        page.locator("#stage[data-ready]").wait_for()
        found = page.locator("#map-canvas").evaluate(POINTS)
        assert len(found["colours"]) >= 4, "points of every cluster but, perhaps, one below another"
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
"""Colours of the map, and where one of its points is in the viewport."""


def test_a_browser_without_webgl_is_told_so(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        page.goto(f"{served.base}/map")
        expect(page.locator("#map-said")).to_contain_text("no WebGL")
        expect(page.locator(".places a")).to_have_count(len(SHOWN))


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_pages_fit_and_axe_finds_no_fault(browser: Browser, served: Served, width: int, dark: bool, tmp_path: Path) -> None:
    with opened(browser, served, width=width, dark=dark) as page:
        key = cat(page, served)
        image = page.url.partition("?")[0].removeprefix(served.base)
        paths = ["/explore", f"/clusters/{key}", "/images", image, "/search?q=cat", "/map", "/duplicates", "/curation"]
        for path in paths:
            page.goto(served.base + path)
            for fold in page.locator("details:not([open]) > summary").all():
                fold.click()
            page.screenshot(path=tmp_path / f"{path.strip('/').replace('/', '-')[:40]}.png")
            assert overflow(page) <= 0, path
            found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
            assert not [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found], path


def test_foreign_text_stays_text(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.goto(f"{served.base}/images?sort=name&order=ascending")
        hostile = page.get_by_title(HOSTILE)
        expect(hostile).to_have_text(HOSTILE)
        hostile.locator("xpath=ancestor::figure").locator("a").click()
        expect(page.locator("h1")).to_have_text(HOSTILE)
        expect(page.locator("h1 img, [onerror]")).to_have_count(0)


def test_another_site_neither_reads_nor_writes(browser: Browser, served: Served) -> None:
    """A page of another port of this machine, to which the browser sends the cookie."""
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


def test_the_next_night_shows_what_was_said(browser: Browser, served: Served, config: PipelineConfig) -> None:
    """With new images; the name goes with the cluster, and the new cats are in it."""
    with opened(browser, served) as page:
        key = cat(page, served)
        crops(Path(str(config.source)), range(CROPS, CROPS + 3))
        context, _, _ = cluster(config)
        assert pipeline.finish(context)["published"]
        assert context.run.id != served.context.run.id
        page.goto(f"{served.url}/explore/photos")
        expect(page.locator("h1")).to_contain_text(f"{(CROPS + 3) * len(SHOWN)} images")
        page.get_by_role("link", name="<b>Chelsea</b>").click()
        page.wait_for_url(f"**/{context.run.id}/clusters/{key}")
        expect(page.locator("dl.facts dd").first).to_have_text(str(CROPS + 3))
        page.goto(f"{served.base}/explore")
        expect(page.locator(".message.older")).to_contain_text("Another run is published now")
