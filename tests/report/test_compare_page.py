"""The page of a comparison of runs."""

from dataclasses import replace

import numpy as np
import pytest

from gsec_core.report import text
from gsec_core.report.colours import colour
from gsec_core.report.pages import MAX_BYTES, MAX_MATCHES, compared
from tests.report.contents import HOSTILE, comparison, hostile_comparison
from tests.report.test_pages import _between, _tags, _text

SCORES = [{"labelled": 317, "ACC": 0.811, "NMI": 0.722, "ARI": 0.633}] * 3


def test_the_page_shows_every_figure_of_the_comparison() -> None:
    made, thumbnails = comparison()
    page = compared(made, [], thumbnails)
    shown = _text(page)
    for said in (
        "3 clusterings of 400 images",
        "corpus photos",
        "Left out",
        "2 min 05 s",
        "tac",
        "turtle",
        "nouns",
        f"{made.ari[0, 1]:.3f}",
        f"{made.ari[1, 2]:.3f}",
    ):
        assert said in shown
    assert f"{made.differ} images are ({100 * made.differ / 400:.1f}%) in clusters that do not match" in shown
    assert all(image.uri in shown for image in made.differing)
    assert page.count(b"data:image/jpeg") == len(made.differing) == 36
    assert "No labels were used" in shown
    for number in range(5):
        both, sizes = made.pairs[0].both[number], [run.sizes[number] for run in made.runs[:2]]
        cells = '</td><td class="number">'.join([str(both), *map(str, sizes), f"{both / (sum(sizes) - both):.3f}"])
        assert cells in page.decode(), "a row must have the images in both clusters, in each of them, and the overlap"


def test_scores_against_labels_are_on_the_page_with_a_remark() -> None:
    shown = _text(compared(comparison()[0], SCORES, {}))
    assert "0.811" in shown
    assert "compare with labels, and were computed after everything else" in shown
    assert "No labels were used" not in shown


def test_matched_clusters_are_named_side_by_side_with_their_colours() -> None:
    made, _ = comparison(2)
    swapped = made.pairs[0].match[[1, 0, 2, 3, 4]]
    page = compared(replace(made, pairs=(replace(made.pairs[0], match=swapped),)), [], {}).decode().partition('id="matched"')[2]
    rows = [row.split("<bdi>") for row in page.split("<tr>")[2:]]
    for _, one, other in rows[:5]:
        place = int(one.partition("</bdi>")[0].split()[-1])
        assert other.startswith(f"{made.runs[1].names[swapped[place]]}</bdi>")
        assert f'fill="{colour(place)}"' in one, "the colour must be before the other cluster's name"
    [before, _] = rows[5]
    assert f'fill="{colour(5 + 5)}"' in before, "an unmatched cluster must have a colour of its own"


def test_the_pages_policy_allows_only_its_own_style_and_loads_nothing() -> None:
    page = compared(*_args(hostile_comparison()))
    policy = _between(page, 'Content-Security-Policy" content="', '"')
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "script-src 'none'" in policy
    assert "unsafe" not in policy
    assert not {name for _, names in _tags(page) for name in names if name == "style" or name.startswith("on")}
    assert b"<script" not in page


def test_hostile_texts_are_shown_as_texts() -> None:
    page = compared(*_args(hostile_comparison()))
    assert _tags(page) <= _tags(compared(*_args(comparison(clusters=len(HOSTILE)))))
    for bad in HOSTILE:
        assert bad.strip() == "" or text.prose(bad, 120)[:20] in _text(page)
    assert "\u202e" not in page.decode()


def test_equal_comparisons_give_equal_bytes() -> None:
    assert compared(*_args(comparison())) == compared(*_args(comparison()))


def test_missing_thumbnails_leave_their_place_empty() -> None:
    made, thumbnails = comparison()
    page = compared(made, [], dict.fromkeys(thumbnails, b"no JPEG"))
    assert b"data:image" not in page
    assert _text(page).count("no thumbnail") == 36


@pytest.mark.parametrize(
    ("runs", "clusters", "says"), [(2, 6000, "1,001 more are left out"), (12, 1000, "926 more are left out"), (60, 3, "The first 500 of 1,770 pairs")]
)
def test_the_page_has_a_limited_size_and_says_what_it_leaves_out(runs: int, clusters: int, says: str) -> None:
    made, thumbnails = comparison(runs, clusters, images=2000)
    page = compared(made, [], thumbnails)
    assert len(page) < MAX_BYTES
    matches = page.decode().partition('id="matched"')[2]
    assert 0 < matches.count("<tr><td>") <= MAX_MATCHES
    assert says in matches


def test_the_page_of_equal_runs_says_that_no_image_differs() -> None:
    made, _ = comparison(2)
    same = replace(made, differ=0, differing=(), ari=np.ones((2, 2)))
    assert "Every image is in matched clusters in all the runs." in _text(compared(same, [], {}))


def _args(made):  # type: ignore[no-untyped-def]
    return made[0], SCORES, made[1]
