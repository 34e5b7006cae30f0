import json
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import escape

from gsec_core.report import charts, pictures, text
from gsec_core.report.colours import colour
from gsec_core.report.content import Cluster, Content
from gsec_core.report.layout import MOST_CONFIDENT, REPRESENTATIVE, SAMPLE
from gsec_core.report.pages import MAX_BYTES, MAX_INLINE, MAX_LISTED, pages
from tests.report.contents import HOSTILE, content, hostile, worst


def test_the_index_comes_after_every_page_that_it_links_to() -> None:
    paths = [path for path, _ in pages(content(60, shown=200))]
    assert paths == [f"clusters/{number:05d}.html" for number in range(60)] + ["index.html"]


def test_with_few_clusters_the_galleries_are_in_the_index() -> None:
    made = dict(pages(content(MAX_INLINE, shown=600)))
    assert list(made) == ["index.html"]
    assert made["index.html"].count(b'<article class="gallery"') == MAX_INLINE
    assert b'href="#cluster-7"' in made["index.html"]


def test_with_many_clusters_each_has_a_page_that_links_its_neighbours() -> None:
    made = dict(pages(content(MAX_INLINE + 1, shown=600)))
    assert b'<article class="gallery"' not in made["index.html"]
    assert b'href="clusters/00007.html"' in made["index.html"]
    around = ["00006.html", "../index.html#row-7", "00008.html"]
    assert _links(made["clusters/00007.html"]) == ["#main", *around, "../index.html#map-7", *around]
    assert _links(made["clusters/00000.html"])[1:3] == ["../index.html#row-0", "00001.html"]
    assert _links(made["clusters/00050.html"])[-2:] == ["00049.html", "../index.html#row-50"]


def test_equal_contents_give_equal_bytes() -> None:
    assert list(pages(content(60, shown=300))) == list(pages(content(60, shown=300)))


def test_pages_are_made_one_by_one_on_request() -> None:
    with pytest.raises(AttributeError):
        list(pages(None))  # type: ignore[arg-type]
    first = next(iter(pages(replace(content(60, shown=60), timings=({"no": "stage"},)))))  # an error that only the index would meet
    assert first[0] == "clusters/00000.html"


def test_the_index_shows_every_part_of_the_content() -> None:
    shown = _text(_index(content(12, shown=100)))
    for said in ["photos-1a2b3c4d", "/data/photos", "Mostly lighthouses with", "k-means", "0.710", "empty file", "broken/3.jpg", "copy of 2.jpg", "2 min 05 s"]:
        assert said in shown
    assert "encode.batch_size = 64" in shown
    assert "prototypes.count = not set" in shown


def test_the_index_says_how_many_images_are_shown_and_how_they_were_chosen() -> None:
    some = replace(content(12, shown=100), counts={"assigned": 1_281_167})
    assert "100 of 1,281,167 images are shown: at most 5,000" in _text(_index(some))


@pytest.mark.parametrize("clusters", [12, 60])
def test_hostile_texts_are_shown_as_texts(clusters: int) -> None:
    ours = {path: _tags(page) for path, page in pages(content(clusters, shown=clusters * 10))}
    theirs = {path: _tags(page) for path, page in pages(hostile(clusters))}
    assert {tag for tags in theirs.values() for tag in tags} <= {tag for tags in ours.values() for tag in tags} | {("dd", ("dir",)), ("p", ("class",))}
    page = dict(pages(hostile(clusters)))["index.html"]
    assert "{{7*7}}" in _text(page)
    for bad in HOSTILE:
        assert bad.strip() == "" or text.prose(bad, 240)[:20] in _text(page)
    assert "\u202e" not in page.decode()


def test_the_data_of_the_map_have_hostile_texts_unchanged() -> None:
    page = _index(hostile())
    data = json.loads(_between(page, '<script type="application/json" id="map-data">', "</script>"))
    assert set(data["uri"]) == {text.cut_middle(bad, 300) for bad in HOSTILE}


def test_the_pages_policy_allows_only_its_own_style_and_scripts() -> None:
    page = _index(hostile())
    policy = _between(page, 'Content-Security-Policy" content="', '"')
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    attributes = {name for _, names in _tags(page) for name in names}
    assert not {name for name in attributes if name == "style" or name.startswith("on")}


@pytest.mark.parametrize("clusters", [MAX_INLINE, MAX_INLINE + 1])
def test_the_size_of_the_index_is_limited_for_any_content(clusters: int) -> None:
    made = list(pages(worst(clusters)))
    assert len(made[-1][1]) < MAX_BYTES
    assert all(len(page) < 1_000_000 for path, page in made[:-1])


def test_the_index_of_a_hundred_thousand_clusters_stays_small_and_says_what_it_leaves_out() -> None:
    some = worst(200, shown=1000)
    many = replace(some, clusters=tuple(replace(some.clusters[number % 200], cluster=number) for number in range(100_000)))
    made = dict(pages(many))
    assert len(made["index.html"]) < MAX_BYTES
    assert len(made) == MAX_LISTED + 1
    assert "The 5,000 largest clusters are listed here; 95,000 smaller ones are left out." in _text(made["index.html"])


def test_an_empty_content_gives_a_report() -> None:
    empty = Cluster(0, 0, "", "", (), 0, None, None, float("nan"), None, None)
    for clusters in [(), (empty,), (empty,) * 60]:
        nothing = Content("run", "now", (), {}, clusters, (), (), (), (), (), (), (), (), (), (), (), {})
        shown = _text(dict(pages(nothing))["index.html"])
        assert f"0 images in {len(clusters)} cluster" in shown
        assert "No image is shown" in shown


def test_missing_or_damaged_thumbnails_leave_their_place_empty() -> None:
    some = content(12, shown=300)
    for thumbnail in (None, b"", b"no JPEG"):
        page = _index(replace(some, emerging=(), duplicates=(), shown=tuple(replace(image, thumbnail=thumbnail) for image in some.shown)))
        assert b"data:image" not in page
        assert b"no thumbnail" in page


def test_places_that_are_not_numbers_do_not_break_the_map() -> None:
    some = content(12, shown=300)
    page = _index(replace(some, shown=tuple(replace(image, x=float("nan"), y=float("inf"), confidence=float("nan")) for image in some.shown)))
    data = json.loads(_between(page, 'id="map-data">', "</script>"))
    assert set(data["x"]) == set(data["y"]) == {5000}
    assert set(data["confidence"]) == {None}


def test_the_page_says_how_many_more_images_a_large_group_of_duplicates_has() -> None:
    assert "and 49,998 more" in _text(_index(content(1, shown=4)))


def test_duplicates_are_shown_with_the_one_to_keep_first() -> None:
    page = _index(content(1, shown=4))
    shown = " ".join(_text(page).split())
    assert "The 2 largest groups" in shown
    assert "2.jpgkeep copy of 2.jpgsame bytes and 49,998 more" in shown
    assert "1.jpgkeep no thumbnail nearly 1.jpgcosine 0.914" in shown
    assert "An older gsec made this run, and did not look for copies." in _text(_index(replace(content(1, shown=4), duplicates=None)))
    assert "No image is a copy of another." in _text(_index(replace(content(1, shown=4), duplicates=())))


def test_a_gallery_shows_six_of_each_role_and_the_map_shows_all() -> None:
    some = content(1, shown=60)
    roles = (REPRESENTATIVE, MOST_CONFIDENT, SAMPLE)
    page = _index(replace(some, shown=tuple(replace(image, role=roles[place // 20]) for place, image in enumerate(some.shown))))
    assert page.count(b"<figure>\n<div") == 12
    assert "60 of" in _text(page)


@pytest.mark.parametrize(("budget", "largest"), [(48_100, 64), (44_000, 48), (40_100, 32), (100, 0)])
def test_gallery_pictures_shrink_until_they_fit(budget: int, largest: int) -> None:
    files = [image.thumbnail for image in content(1, shown=40).shown]
    made = pictures.gallery(files, budget)
    assert sum(len(picture.source) for picture in made if picture) <= budget
    assert max((picture.width for picture in made if picture), default=0) == largest


@pytest.mark.parametrize(("budget", "tile"), [(3_000_000, 96), (400_000, 48), (200_000, 32), (80_000, 24), (100, 0)])
def test_tiles_shrink_until_all_sheets_fit(budget: int, tile: int) -> None:
    files = [image.thumbnail for image in worst(1, shown=300).shown]
    made = pictures.sheets(files, budget)
    assert made.tile == tile
    assert len(made.sources) == (2 if tile else 0)
    assert sum(map(len, made.sources)) <= budget
    assert set(made.sizes) == {(tile, tile)}
    assert len(made.sizes) == 300


@given(st.text(st.characters() | st.sampled_from("<>&'\"\\\n\u202e")), st.integers(12, 60))
def test_a_cut_text_takes_no_more_bytes_than_allowed(foreign: str, limit: int) -> None:
    for made in (text.cut(foreign, limit), text.cut_middle(foreign, limit), text.prose(foreign, limit)):
        in_html, in_script = str(escape(made)), str(htmlsafe_json_dumps(made, dumps=partial(json.dumps, ensure_ascii=False)))[1:-1]
        assert max(len(in_html.encode()), len(in_script.encode())) <= limit + len("…".encode())
        assert made.encode().decode() == made


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (text.cut("a lighthouse", 12), "a lighthouse"),
        (text.cut("a lighthouse at sea", 12), "a lighthouse…"),
        (text.cut_middle("s3://bucket/photos/2026/02/03/heron.jpg", 24), "s3://buc…/02/03/heron.jpg"),
        (text.prose(" two\n words ", 40), "two words"),
        (text.visible("a\u202eb\nc\ud800"), "a\\u202eb\\nc\\ud800"),
    ],
)
def test_texts_are_cut_where_the_least_information_is_lost(made: str, shown: str) -> None:
    assert made == shown


def test_sixty_colours_differ_and_contrast_with_both_backgrounds() -> None:
    made = [colour(cluster) for cluster in range(60)]
    assert len(set(made)) == 60
    for ground in (0.975, 0.0075):  # luminance of the light and the dark background
        assert all(_contrast(value, ground) >= 3 for value in made)


def test_a_chart_of_many_sizes_keeps_the_largest_and_the_smallest() -> None:
    chart = charts.ranked(range(100_000, 0, -1))
    assert len(chart.bars) == 120
    assert [chart.bars[0].says, chart.bars[-1].says] == ["rank 1: 100,000 images", "rank 100,000: 1 images"]
    assert chart.bars[0].height == 100


def test_a_histogram_has_a_bar_for_each_count() -> None:
    chart = charts.histogram([2, 0, 1, 4])
    assert [bar.height for bar in chart.bars] == [50, 0, 25, 100]
    assert (chart.top, chart.bars[2].says) == (4, "0.50 to 0.75: 1")


def _index(some: Content) -> bytes:
    return dict(pages(some))["index.html"]


def _between(page: bytes, start: str, end: str) -> str:
    return page.decode().partition(start)[2].partition(end)[0]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self._code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self._code = tag in ("script", "style")
        self.links += [value or "" for name, value in attrs if name == "href" and tag == "a"]

    def handle_endtag(self, tag: str) -> None:
        self._code = False

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.texts.append(data)


def _read(page: bytes) -> _Reader:
    reader = _Reader()
    reader.feed(page.decode())
    return reader


def _tags(page: bytes) -> set[tuple[str, tuple[str, ...]]]:
    return set(_read(page).tags)


def _links(page: bytes) -> list[str]:
    return _read(page).links


def _text(page: bytes) -> str:
    return " ".join("".join(_read(page).texts).split())


def _contrast(colour: str, luminance: float) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))]
    own = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (max(own, luminance) + 0.05) / (min(own, luminance) + 0.05)
