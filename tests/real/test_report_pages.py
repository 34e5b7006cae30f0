import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from gsec_core.report.content import Content
from gsec_core.report.pages import compared, pages
from gsec_core.report.text import visible
from tests.real.browser import check_report, coloured_point, drawn, loaded, mark_scrolled, opened, overflow, thumbnail_colours
from tests.report.contents import HOSTILE, comparison, content, hostile, hostile_comparison


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(content(12, shown=600), tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(content(1000, shown=5000), tmp_path_factory.mktemp("many"))


def test_every_interactive_part_of_a_report_of_few_clusters_works(browser: Browser, few: Path) -> None:
    check_report(browser, few, clusters=12)


def test_every_interactive_part_of_a_report_of_many_clusters_works(browser: Browser, many: Path) -> None:
    check_report(browser, many, clusters=1000)


@pytest.mark.parametrize("clusters", [12, 60])
def test_hostile_texts_are_shown_as_texts_and_nothing_runs(browser: Browser, tmp_path: Path, clusters: int) -> None:
    index = _written(hostile(clusters), tmp_path)
    for path in [index, *sorted(index.parent.glob("clusters/*"))[:16]]:
        for width in (1280, 360):
            with opened(browser, path, width=width) as page:
                shown = page.locator("body").inner_text()
                assert any(bad.strip() and bad in shown for bad in HOSTILE)
                assert overflow(page) <= 0
    with opened(browser, index) as page:
        shown = page.locator("body").inner_text()
        for bad in HOSTILE[:7]:
            assert bad in shown
        page.get_by_role("searchbox").fill("<script>")
        page.locator("#map-canvas").focus()
        for _ in range(15):
            page.keyboard.press("ArrowRight")
            said = page.locator("#map-tip-uri").inner_text()
            assert page.locator("#map-tip-uri").evaluate("e => e.childElementCount") == 0
            assert any(said == visible(bad).strip() for bad in HOSTILE)
        assert page.locator("svg[onload], img[onerror], b:has-text('alert')").count() == 0


def test_the_models_name_of_a_renamed_cluster_stands_below_its_name(browser: Browser, tmp_path: Path) -> None:
    plain = content(12, shown=24)
    renamed = tuple(replace(cluster, model_name="ping-pong ball, purple colours") for cluster in plain.clusters)
    with opened(browser, _written(replace(plain, clusters=renamed), tmp_path)) as page, opened(browser, _written(plain, tmp_path / "plain")) as before:
        for row, as_it_was in zip(page.locator("#rows tr").all(), before.locator("#rows tr").all(), strict=True):
            boxes = [found.bounding_box() for found in (row.locator("th.name a"), row.locator("small"), as_it_was.locator("th.name a"))]
            name, model, was = [box for box in boxes if box]
            assert name["width"] == was["width"]
            assert model["y"] >= name["y"] + name["height"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 360])
def test_a_comparison_shows_hostile_texts_as_texts_and_its_pictures(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    for made, thumbnails in (comparison(), comparison(12, 40), hostile_comparison()):
        path = tmp_path / "compare.html"
        path.write_bytes(compared(made, [], thumbnails))
        with opened(browser, path, width=width, dark=dark) as page:
            assert overflow(page) <= 0
            assert all(loaded(picture) for picture in page.locator("figure img").all()[:12])
            for pair in page.locator("summary").all()[:3]:
                pair.click()
            assert overflow(page) <= 0
            shown = page.locator("body").inner_text()
            assert made.runs[1].method in shown
    for bad in HOSTILE[:7]:
        assert bad in shown


def test_axe_finds_no_accessibility_fault_in_a_comparison(browser: Browser, tmp_path: Path) -> None:
    made, thumbnails = comparison()
    path = tmp_path / "compare.html"
    path.write_bytes(compared(made, [], thumbnails))
    with opened(browser, path) as page:
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        assert not [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]


def test_the_pages_policy_stops_a_foreign_script(browser: Browser, few: Path, tmp_path: Path) -> None:
    bad = tmp_path / "index.html"
    bad.write_text(few.read_text().replace("<main", "<script>document.title = 'mine'</script><img src=x onerror=\"document.title = 'mine'\"><main", 1))
    with pytest.raises(AssertionError, match="Content Security Policy"), opened(browser, bad):
        pass


@pytest.mark.parametrize("dark", [False, True])
def test_the_background_follows_the_readers_colour_scheme(browser: Browser, few: Path, dark: bool) -> None:
    with opened(browser, few, dark=dark) as page:
        red = int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))
        assert (red < 64) == dark
        coloured_point(page)


def test_the_map_can_be_zoomed_moved_and_reset(browser: Browser, few: Path) -> None:
    with opened(browser, few) as page:
        whole = drawn(page)
        page.locator("#map-canvas").focus()
        seen = []
        for key in ("+", "-", "+"):
            page.keyboard.press(key)
            seen.append(drawn(page))
        assert seen == [seen[0], whole, seen[0]]
        assert seen[0] != whole
        x, y = coloured_point(page)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y + 40, steps=4)
        page.mouse.up()
        page.mouse.move(2, 2)
        moved = drawn(page)
        assert moved not in (whole, seen[0])
        page.mouse.move(x, y)
        page.mouse.wheel(0, -300)
        page.mouse.move(2, 2)
        assert drawn(page) not in (whole, seen[0], moved)
        page.get_by_role("button", name="Whole map").click()
        assert drawn(page) == whole


def test_a_page_can_be_scrolled_over_the_map(browser: Browser, few: Path) -> None:
    with opened(browser, few) as page:
        x, y = coloured_point(page)
        before = page.evaluate("window.scrollY")
        mark_scrolled(page.locator("html"))
        page.mouse.move(x, y)
        page.mouse.wheel(0, 200)
        expect(page.locator("html")).to_have_attribute("data-scrolled", "")
        assert page.evaluate("window.scrollY") > before


def test_choosing_pointing_at_or_searching_clusters_dims_the_others_on_the_map(browser: Browser, few: Path) -> None:
    with opened(browser, few) as page:
        everything = drawn(page)
        page.get_by_label("Highlight").select_option("2")
        chosen = drawn(page)
        page.get_by_label("Highlight").select_option("")
        assert drawn(page) == everything != chosen
        page.get_by_role("searchbox").fill("teapot")
        assert drawn(page) != everything
        page.get_by_role("searchbox").fill("")
        assert drawn(page) == everything
        page.locator("#row-2 .name").hover()
        assert drawn(page) == chosen


def test_a_tap_shows_an_image_and_keeps_it_with_a_link_to_its_gallery(browser: Browser, few: Path) -> None:
    with opened(browser, few, width=360, touch=True) as page:
        x, y = coloured_point(page)
        page.touchscreen.tap(x, y)
        expect(page.locator("#map-tip")).to_be_visible()
        assert thumbnail_colours(page) > 3
        target = page.locator("#map-tip-name").get_attribute("href")
        page.locator("#map-tip-name").click()
        page.wait_for_url(f"**/*{target}")


def test_a_right_click_on_the_map_keeps_no_image(browser: Browser, few: Path) -> None:
    """It opens the browser's menu, which is nothing of the map's."""
    with opened(browser, few) as page:
        page.mouse.click(*coloured_point(page), button="right")
        page.mouse.move(1, 1)
        expect(page.locator("#map-tip")).to_be_hidden()


def test_the_page_of_a_cluster_links_to_its_highlight_on_the_map(browser: Browser, many: Path) -> None:
    with opened(browser, many.parent / "clusters" / "00007.html") as page:
        page.get_by_role("link", name="on the map").click()
        expect(page.get_by_label("Highlight")).to_have_value("7")
        expect(page.locator("#map-canvas")).to_be_in_viewport()


def test_without_scripts_everything_but_sorting_search_and_map_is_there(browser: Browser, few: Path) -> None:
    with opened(browser, few, scripts=False) as page:
        expect(page.locator("noscript .note")).to_have_text(re.compile("JavaScript is off"))
        expect(page.locator("#rows tr:visible")).to_have_count(12)
        expect(page.get_by_role("searchbox")).to_be_hidden()
        assert page.locator("#gallery-list img").count() > 60


def test_the_keyboard_reaches_the_content_first_and_then_everything_in_order(browser: Browser, few: Path) -> None:
    with opened(browser, few) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        levels = page.evaluate("Array.from(document.querySelectorAll('h1, h2, h3, h4'), heading => Number(heading.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        names = page.evaluate(
            "Array.from(document.querySelectorAll('a, button, input, select, canvas[tabindex]'), e => e.textContent.trim() || e.ariaLabel || e.id)"
        )
        assert all(names)


def test_texts_have_enough_contrast_with_their_background(browser: Browser, few: Path) -> None:
    for dark in (False, True):
        with opened(browser, few, dark=dark) as page:
            assert page.evaluate(_LEAST_CONTRAST) >= 4.5


def test_pictures_of_a_gallery_load_when_they_come_into_view(browser: Browser, few: Path) -> None:
    with opened(browser, few) as page:
        assert loaded(page.locator("#gallery-list img").last)


def test_a_report_is_printed_completely(browser: Browser, few: Path) -> None:
    with opened(browser, few) as page:
        page.emulate_media(media="print")
        expect(page.locator(".bar")).to_be_hidden()
        table = page.locator(".scroll").first
        assert table.evaluate("e => e.scrollHeight - e.clientHeight") <= 1


def _written(some: Content, folder: Path) -> Path:
    for path, page in pages(some):
        to = folder / path
        to.parent.mkdir(exist_ok=True)
        to.write_bytes(page)
    return folder / "index.html"


_LEAST_CONTRAST = """() => {
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const ground = element => {
        for (; element; element = element.parentElement) {
            const colour = parse(getComputedStyle(element).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
    };
    let least = 21;
    for (const element of document.querySelectorAll("body *:not(script, noscript, style, option)")) {
        if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
        const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
        least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
    }
    return least;
}"""
