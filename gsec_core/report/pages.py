"""The HTML pages of a report. They open from disk, load no other files, and stay small for any number of images and clusters."""

import base64
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from gsec_core.clustering import hierarchy
from gsec_core.report import charts, layout, pictures, text
from gsec_core.report.colours import colour
from gsec_core.report.content import GROUPS, LINES, OF_A_GROUP, Cluster, Content, Duplicate, Duplicates, Emerging, Node, Shown
from gsec_core.report.layout import LEAST_CONFIDENT, MOST_CONFIDENT, NEW, REPRESENTATIVE
from gsec_core.report.pictures import Picture

if TYPE_CHECKING:
    from gsec_core.results.compare import Comparison, Pair

_PACKAGE = "gsec_core.report"

MAX_BYTES = 20_000_000
"""Largest size of the index. The limits below ensure it: lists are bounded, texts are cut, and pictures shrink until they fit."""

MAX_INLINE = 50
"""Up to this number of clusters, their galleries are in the index; with more, each cluster has a page."""

MAX_LISTED = layout.MOST
"""Largest number of clusters in the table, and of images on the map."""

MAX_TREE = 1_000
"""Largest number of clusters whose tree is in the index."""

_DEEPEST, _NODE = 24, 60
"""Largest number of nested levels of the tree that can be folded, since browsers limit nesting to some hundreds of elements; and bytes of a node's name."""

MAX_MATCHES = 5_000
"""Largest number of rows in all tables of matched clusters together."""

_GALLERY_BYTES = _SHEETS_BYTES = 5_000_000

_EMERGING_BYTES = 500_000

_DUPLICATES_BYTES = 1_500_000

_ROLES = (
    (REPRESENTATIVE, "Representatives", "described images first, then those nearest to the centre"),
    (MOST_CONFIDENT, "Most confident", "highest confidence first"),
    (LEAST_CONFIDENT, "Least confident", "lowest confidence first"),
    (NEW, "New", "new since the model was fitted"),
)

_NAME, _DESCRIPTION, _WHOLE, _TERMS, _URI, _SHORT, _CAPTION, _VALUE = 120, 480, 2000, 240, 300, 90, 300, 1000
"""Largest number of bytes of each kind of text in a page."""

_MAP_SIDE = 10_000
"""Coordinates on the map are integers up to this number."""


def pages(content: Content) -> Iterator[tuple[str, bytes]]:
    """Yield path in the report's folder and bytes of each page; ``index.html`` comes last, so that all pages that it links to exist.

    Equal contents give equal bytes.
    """
    environment = _templates()
    listed = content.clusters[:MAX_LISTED]
    inline = len(content.clusters) <= MAX_INLINE
    galleries = _galleries(content)
    if not inline:
        page = environment.get_template("cluster.html.j2")
        for before, cluster, after in zip((None, *listed), listed, (*listed[1:], None), strict=False):
            roles = _with_pictures([galleries[cluster.cluster]])[0]
            yield _path(cluster.cluster), page.render(content=content, cluster=cluster, roles=roles, before=before, after=after).encode()
    inlined = _with_pictures([galleries[cluster.cluster] for cluster in listed]) if inline else []
    index = environment.get_template("index.html.j2")
    yield "index.html", index.render(**_index(content, listed, inline), galleries=list(zip(listed, inlined, strict=False))).encode()


def compared(comparison: "Comparison", scores: Sequence[Mapping[str, Any]], thumbnails: Mapping[bytes, bytes]) -> bytes:
    """The page of a comparison of runs. ``scores``: one row for each run, or empty; ``thumbnails``: available JPEGs by image id."""
    made = pictures.gallery([thumbnails.get(image.image_id) for image in comparison.differing], _GALLERY_BYTES)
    page = _templates().get_template("compare.html.j2")
    rows = [{**row, **scored} for row, scored in zip(comparison.rows(), scores or [{}] * len(comparison.runs), strict=True)]
    differing = list(zip(comparison.differing, made, strict=True))
    return page.render(comparison=comparison, rows=rows, scores=scores, matches=_matches(comparison), differing=differing).encode()


def _matches(comparison: "Comparison") -> list[tuple["Pair", list[tuple[int | None, int | None, int]], int]]:
    """For each pair of runs, or the first pairs: rows of two matched clusters with the number of images in both, and the number of rows left out.

    Rows with most images come first, clusters without a match last.
    """
    most = max(10, MAX_MATCHES // len(comparison.pairs))
    found = []
    for pair in comparison.pairs[: MAX_MATCHES // most]:
        match, both = pair.match.tolist(), pair.both.tolist()
        matched = sorted(((one, other, both[one]) for one, other in enumerate(match) if other >= 0), key=lambda row: -row[2])
        alone = [(one, None, 0) for one, other in enumerate(match) if other < 0]
        left = sorted(set(range(len(comparison.runs[pair.other].names))) - set(match))
        rows = [*matched, *alone, *((None, other, 0) for other in left)]
        found.append((pair, rows[:most], len(rows) - len(rows[:most])))
    return found


def _index(content: Content, listed: Sequence[Cluster], inline: bool) -> dict[str, Any]:
    count = min(len(content.shown), MAX_LISTED)
    onmap = [content.shown[place * len(content.shown) // count] for place in range(count)]
    sheets = pictures.sheets([shown.thumbnail for shown in onmap], _SHEETS_BYTES)
    sizes = [cluster.size for cluster in content.clusters]
    return {
        "content": content,
        "listed": listed,
        "inline": inline,
        "targets": {cluster.cluster: f"#cluster-{cluster.cluster}" if inline else _path(cluster.cluster) for cluster in listed},
        "emerging": _emerging(content),
        "duplicates": _duplicates(content),
        "tree": list(_tree(content)),
        "merges": [(node.left, node.right, text.cut(node.name, _NODE)) for node in content.tree] if _tree_fits(content) else [],
        "largest": max([1, *sizes]),
        "sizes": charts.ranked(sorted(sizes, reverse=True)),
        "confidences": charts.histogram(content.confidences),
        "onmap": onmap,
        "sheets": sheets,
        "map": _map(content, onmap, sheets),
        "settings": list(_flat(content.configuration)),
        "limits": {"lines": LINES, "shown": MAX_LISTED},
    }


def _tree_fits(content: Content) -> bool:
    return 0 < len(content.tree) == len(content.clusters) - 1 < MAX_TREE


def _tree(content: Content) -> Iterator[tuple[str, Node | Cluster]]:
    """Steps "open", "close" and "leaf" with a node or cluster, in the order of the page; empty if the tree is too large."""
    if not _tree_fits(content):
        return
    merges = [(node.left, node.right) for node in content.tree]
    sizes = [*(cluster.size for cluster in content.clusters), *(node.size for node in content.tree)]
    for step, number, _ in hierarchy.walk(merges, sizes, _DEEPEST):
        yield step, content.clusters[number] if step == "leaf" else content.tree[number - len(content.clusters)]


def _emerging(content: Content) -> list[tuple[Emerging, list[Picture | None]]]:
    """Groups of new images with their pictures."""
    made = iter(pictures.gallery([thumbnail for group in content.emerging for thumbnail in group.thumbnails], _EMERGING_BYTES))
    return [(group, [next(made) for _ in group.thumbnails]) for group in content.emerging]


def _duplicates(content: Content) -> list[tuple[Duplicates, list[tuple[Duplicate, Picture | None]]]]:
    """The first groups of duplicates with their pictures."""
    groups = [(group, group.images[:OF_A_GROUP]) for group in (content.duplicates or ())[:GROUPS]]
    made = iter(pictures.gallery([image.thumbnail for _, images in groups for image in images], _DUPLICATES_BYTES))
    return [(group, [(image, next(made)) for image in images]) for group, images in groups]


def _map(content: Content, onmap: Sequence[Shown], sheets: pictures.Sheets) -> dict[str, Any]:
    """Input of the map's script: columns of the points, and their clusters."""
    xs, ys = _scaled([shown.x for shown in onmap], [shown.y for shown in onmap])
    numbers = {shown.cluster for shown in onmap}
    return {
        "x": xs,
        "y": ys,
        "cluster": [shown.cluster for shown in onmap],
        "confidence": [_finite(shown.confidence) for shown in onmap],
        "uri": [text.cut_middle(shown.uri, _URI) for shown in onmap],
        "width": [width for width, _ in sheets.sizes],
        "height": [height for _, height in sheets.sizes],
        "tile": sheets.tile,
        "clusters": {
            str(cluster.cluster): [_FILTERS["name"](cluster.name), colour(cluster.cluster)] for cluster in content.clusters if cluster.cluster in numbers
        },
    }


def _scaled(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[int], list[int]]:
    """Coordinates scaled to integers in a square, with the same scale on both axes."""
    xs, ys = ([value if math.isfinite(value) else 0.0 for value in values] for values in (xs, ys))
    span = max([max(values) - min(values) for values in (xs, ys) if values], default=0.0)

    def scaled(values: Sequence[float]) -> list[int]:
        low, high = min(values, default=0.0), max(values, default=0.0)
        return [round(_MAP_SIDE * (0.5 + (value - (low + high) / 2) / (span or 1.0))) for value in values]

    return scaled(xs), scaled(ys)


def _galleries(content: Content) -> Mapping[int, dict[str, list[Shown]]]:
    """The images to show, by cluster and role."""
    found: defaultdict[int, dict[str, list[Shown]]] = defaultdict(lambda: {role: [] for role, *_ in _ROLES})
    for shown in content.shown:
        of_role = found[shown.cluster].get(shown.role)
        if of_role is not None and len(of_role) < layout.PER_ROLE:
            of_role.append(shown)
    return found


def _with_pictures(galleries: Sequence[Mapping[str, Sequence[Shown]]]) -> list[list[tuple[str, str, str, list[tuple[Shown, Picture | None]]]]]:
    """The roles with images in each gallery: role, title, explanation, and images with their pictures."""
    every = [shown for roles in galleries for of_role in roles.values() for shown in of_role]
    made = iter(pictures.gallery([shown.thumbnail for shown in every], _GALLERY_BYTES))
    return [[(role, title, says, [(shown, next(made)) for shown in roles[role]]) for role, title, says in _ROLES if roles[role]] for roles in galleries]


def _path(cluster: int) -> str:
    return f"clusters/{cluster:05d}.html"


def _flat(settings: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``section.name`` and value of each setting."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", "not set" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _finite(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None


def figure(value: object, digits: int = 3) -> str:
    """Format a number: integers with separators, floats with ``digits`` decimals, a dash for None and non-finite values."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.{digits}f}"
    return "–" if value is None or isinstance(value, float) else text.prose(str(value), _VALUE)


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else 0.0
    return "< 0.1%" if 0 < percent < 0.1 else f"{percent:.1f}%"


def _duration(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


_FILTERS: dict[str, Callable[..., Any]] = {
    "name": lambda value: text.prose(value, _NAME) or "unnamed",
    "description": lambda value: text.prose(value, _DESCRIPTION),
    "whole": lambda value: text.prose(value, _WHOLE),
    "caption": lambda value: text.prose(value, _CAPTION),
    "terms": lambda value: text.prose(", ".join(value), _TERMS),
    "uri": lambda value: text.cut_middle(value, _URI),
    "short": lambda value: text.cut_middle(value, _SHORT),
    "file": lambda value: text.cut_middle(value.rstrip("/").rpartition("/")[2], _SHORT),
    "value": lambda value: "–" if value is None else text.cut(str(value), _VALUE),
    "when": lambda value: value[:16].replace("T", " "),
    "prose": text.prose,
    "finite": _finite,
    "figure": figure,
    "duration": _duration,
}
"""Filters of the templates; they cut each text to the length that its place allows."""


def templates(package: str) -> jinja2.Environment:
    """A new environment with the templates of a package, with the filters and functions that all pages of gsec share."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters |= _FILTERS
    environment.globals |= {"colour": colour, "share": _share, "path": _path, "asset": asset, "digest": digest}
    return environment


@cache
def _templates() -> jinja2.Environment:
    return templates(_PACKAGE)


def asset(name: str) -> Markup:
    """A style sheet or script of this package, for inclusion in a page without escaping."""
    return Markup(_source(name))


def digest(name: str) -> str:
    """Hash by which a page's content security policy allows this style sheet or script only."""
    return policy_hash(_source(name))


def policy_hash(source: str) -> str:
    """Hash by which a content security policy allows this source of a style sheet or script only."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


@cache
def _source(name: str) -> str:
    return resources.files(_PACKAGE).joinpath("templates", name).read_text("utf-8")
