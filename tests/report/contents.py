"""Synthetic contents of reports and comparisons."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pyarrow as pa

from gsec_core.images.decode import thumbnail
from gsec_core.report.content import Cluster, Content, Duplicate, Duplicates, Emerging, Node, Shown, Unusable
from gsec_core.report.layout import LEAST_CONFIDENT, MOST_CONFIDENT, REPRESENTATIVE, SAMPLE
from gsec_core.results.compare import Compared, Comparison, Differing, Pair
from tests.pictures import picture

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "\"><svg onload='alert(4)'>",
    "javascript:alert(5)",
    "{{7*7}} {% raw %} ${7*7}",
    "</style></textarea></title><!-- --><b>",
    "first\nsecond\r\n\tthird\x00\x1b[31m",
    "photo\u202egpj.exe",
    "null",
    "None",
    "undefined",
    " ",
    "\ud800 half a pair",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0001f468‍👩‍👧 שלום",
)
"""Texts that a careless page would run as code, lose, or be broken by."""

_ROLES = (REPRESENTATIVE,) * 4 + (MOST_CONFIDENT,) * 3 + (LEAST_CONFIDENT,) * 3
_NOUNS = ("lighthouse", "goldfinch", "teapot", "harbour", "violin", "glacier", "bicycle", "orchid", "tram", "heron", "bakery", "canyon")
_LOOKS = ("a smooth surface", "muted colours", "soft light", "fine stripes", "a round outline", "a dark ground")


def content(clusters: int = 12, shown: int = 600, thumbnails: bool = True) -> Content:
    """A report of ``clusters`` clusters that differ in size, with up to ``shown`` images."""
    random = np.random.default_rng(clusters)
    sizes = sorted((int(size) for size in random.pareto(1.5, clusters) * 100 + 10), reverse=True)
    rows = tuple(_cluster(number, size, random) for number, size in enumerate(sizes))
    files = [thumbnail(picture(seed), 96) for seed in range(40)] if thumbnails else [None]
    centres = random.normal(0, 10, (clusters, 2))
    images = [_shown(place, clusters, centres, files, random) for place in range(shown)]
    images.sort(key=lambda image: image.cluster)
    assigned = sum(sizes)
    return Content(
        run_id="photos-1a2b3c4d",
        created="2026-02-03 04:05:06 UTC",
        asked=(("source", "/data/photos"), ("question", f"{clusters} clusters"), ("encoder", "lite"), ("captioner", "tagger")),
        counts={"images": assigned + 7, "assigned": assigned, "rejected": 5, "missing": 2, "clusters": clusters, "duplicates": 4},
        clusters=rows,
        tree=_chain([row.size for row in rows]),
        shown=tuple(images),
        emerging=(Emerging(40, 0, ("a red tram", "a tram at night"), tuple(files[:2] * 2)[:3]), Emerging(12, 99_999, (), (None,) * 3)),
        confidences=tuple(range(20)),
        labellings=(
            {"labelling": "consensus", "purity": 0.72, "cohesion": 0.61, "separation": 0.22, "agreement": 0.93, "largest": 9, "ARI to consensus": 1.0},
            {"labelling": "k-means", "purity": 0.7, "cohesion": 0.64, "separation": 0.24, "agreement": None, "largest": 8, "ARI to consensus": 0.71},
        ),
        remarks=("The members do not agree on 1 of the clusters (stability below 0.5): 2.",),
        reasons=(("rejected", "empty file", 4), ("rejected", "larger than 178 megapixels", 1), ("missing", "gone", 2)),
        unusable=tuple(Unusable(f"broken/{place}.jpg", "rejected", "empty file") for place in range(5)),
        duplicates=(
            Duplicates(50_000, (Duplicate("a/2.jpg", 1.0, True, files[0]), Duplicate("b/copy of 2.jpg", 1.0, True, files[0]))),
            Duplicates(2, (Duplicate("a/1.jpg", 1.0, True, files[-1]), Duplicate("b/nearly 1.jpg", 0.914, False, None))),
        ),
        timings=({"stage": "ingest", "shards": 1, "seconds": 0.4}, {"stage": "encode", "shards": 19, "seconds": 125.0}),
        made_with=(("gsec", "0.1.0"), ("torch", "2.9.0"), ("processor", "x86_64, 2 cores")),
        configuration={"source": "/data/photos", "clusters": clusters, "encode": {"encoder": "lite", "batch_size": 64}, "prototypes": {"count": None}},
    )


def hostile(clusters: int = 12) -> Content:
    """The same with a hostile text in every place for a text."""
    plain = content(clusters, shown=clusters * 10)

    def text(place: int) -> str:
        return HOSTILE[place % len(HOSTILE)]

    return replace(
        plain,
        run_id=text(0),
        created=text(1),
        asked=tuple((text(place), text(place + 1)) for place in range(len(HOSTILE))),
        clusters=tuple(
            replace(row, name=text(row.cluster), description=text(row.cluster + 1), terms=(text(row.cluster + 2), text(row.cluster + 3)))
            for row in plain.clusters
        ),
        shown=tuple(replace(image, uri=text(place), caption=text(place + 1)) for place, image in enumerate(plain.shown)),
        labellings=({"labelling": text(0), text(2): text(3)},),
        remarks=HOSTILE,
        emerging=(Emerging(len(HOSTILE), 0, HOSTILE, (b"no picture", None, None)),),
        reasons=tuple((text(place), text(place + 1), 1) for place in range(len(HOSTILE))),
        unusable=tuple(Unusable(text(place), text(place + 1), text(place + 2)) for place in range(len(HOSTILE))),
        duplicates=tuple(Duplicates(len(HOSTILE), (Duplicate(bad, 0.9, False, b"no picture"),)) for bad in HOSTILE),
        timings=({"stage": text(0), "shards": text(1), "seconds": text(2)},),
        made_with=tuple((text(place), text(place + 1)) for place in range(len(HOSTILE))),
        configuration={text(place): {text(place + 1): text(place + 2)} for place in range(len(HOSTILE))},
    )


def worst(clusters: int, shown: int = 5000) -> Content:
    """The largest content that a report may get: noise, which JPEG cannot compress, and long texts that must all be escaped."""
    random = np.random.default_rng(0)
    from PIL import Image

    noise = [thumbnail(Image.fromarray(random.integers(0, 256, (96, 96, 3), np.uint8)), 96) for _ in range(50)]
    plain = content(clusters, shown, thumbnails=False)
    long = "<&'\"\\>" * 700
    per = max(1, shown // clusters)
    roles = (REPRESENTATIVE, MOST_CONFIDENT, LEAST_CONFIDENT)
    return replace(
        plain,
        run_id=long,
        created=long,
        asked=((long, long),) * 1000,
        clusters=tuple(replace(row, name=long, description=long, terms=(long,) * 20) for row in plain.clusters),
        shown=tuple(
            replace(
                image, uri=f"{long}{place}", caption=long, thumbnail=noise[place % len(noise)], cluster=min(place // per, clusters - 1), role=roles[place % 3]
            )
            for place, image in enumerate(plain.shown)
        ),
        labellings=plain.labellings * 500,
        remarks=(long,) * 1000,
        reasons=((long, long, 1),) * 1000,
        unusable=(Unusable(long, long, long),) * 1000,
        duplicates=(Duplicates(1000, tuple(Duplicate(long, 0.9, False, noise[place % 50]) for place in range(1000))),) * 1000,
        timings=({"stage": long, "shards": 1, "seconds": 1.0},) * 1000,
        made_with=((long, long),) * 1000,
        configuration={f"{long}{place}": long for place in range(1000)},
    )


def comparison(runs: int = 3, clusters: int = 5, images: int = 400) -> tuple[Comparison, dict[bytes, bytes]]:
    """Runs of ``clusters`` or more clusters that differ in a quarter of their images, and the thumbnails of the images that are shown."""
    random = np.random.default_rng(runs)
    first = random.integers(0, clusters, images)
    counts = [clusters + number for number in range(runs)]
    labels = np.array([np.where(random.random(images) < 0.25, random.integers(0, count, images), first) for count in counts], np.int32)
    sizes = [np.bincount(own, minlength=count) for own, count in zip(labels, counts, strict=True)]
    pairs = []
    for one in range(runs):
        for other in range(one + 1, runs):
            both = np.bincount(labels[one][labels[one] == labels[other]], minlength=counts[one])
            pairs.append(Pair(one, other, np.arange(counts[one], dtype=np.int32), both))
    ids = [bytes([place % 256, place // 256, *[0] * 14]) for place in range(images)]
    names = [f"photos/{place:06d}.jpg" for place in range(images)]
    apart = np.flatnonzero((labels != labels[0]).any(0))
    shown = [Differing(ids[place], names[place], 0.5, tuple(labels[:, place].tolist()), (0.9,) * runs) for place in apart[:36]]
    made = Comparison(
        corpus="photos",
        runs=tuple(
            Compared(f"{number:032x}", _METHODS[number % 3], "nouns", "lite", tuple(_name(of) for of in range(count)), sizes[number], 2, 0.5, None, 125.0)
            for number, count in enumerate(counts)
        ),
        images=pa.table({"image_id": ids, "uri": names, "content_hash": ids}),
        labels=labels,
        ari=(labels[:, None] == labels).mean(2),  # a figure like it: of many runs the index takes seconds
        pairs=tuple(pairs),
        differ=len(apart),
        differing=tuple(shown),
    )
    files = [thumbnail(picture(seed), 96) for seed in range(10)]
    return made, {image.image_id: files[place % 10] for place, image in enumerate(shown)}


def hostile_comparison() -> tuple[Comparison, dict[bytes, bytes]]:
    """The same with a hostile text in every place for a text."""
    plain, thumbnails = comparison(clusters=len(HOSTILE))
    of = len(HOSTILE)
    return replace(
        plain,
        corpus=HOSTILE[0],
        runs=tuple(
            replace(run, run_id=HOSTILE[at], method=HOSTILE[at + 1], text=HOSTILE[at + 2], encoder=HOSTILE[at + 3], names=tuple((HOSTILE * 2)[: of + at]))
            for at, run in enumerate(plain.runs)
        ),
        differing=tuple(replace(image, uri=HOSTILE[place % of]) for place, image in enumerate(plain.differing)),
    ), thumbnails


def _name(number: int) -> str:
    return f"{_NOUNS[number % len(_NOUNS)]} {number}"


_METHODS = ("gsec", "tac", "turtle")


def _chain(sizes: list[int]) -> tuple[Node, ...]:
    """The deepest possible tree: each cluster joins all before it."""
    count = len(sizes)
    return tuple(
        Node(count + place - 1 if place else 0, place + 1, f"{HOSTILE[place % len(HOSTILE)]} {place}", place + 2, total)
        for place, total in enumerate(list(accumulate(sizes))[1:])
    )


def _cluster(number: int, size: int, random: np.random.Generator) -> Cluster:
    noun = _NOUNS[number % len(_NOUNS)]
    name = noun if number < len(_NOUNS) else f"{noun} {number // len(_NOUNS)}"
    looks = tuple(str(look) for look in random.choice(_LOOKS, 3, replace=False))
    figures = [float(value) for value in random.uniform(0.2, 0.99, 5)]
    return Cluster(number, 100 + number, name, f"Mostly {noun}s with {looks[0]}, {looks[1]} and {looks[2]}.", (noun, *looks), size, *figures)


def _shown(place: int, clusters: int, centres: np.ndarray, files: list[bytes] | list[None], random: np.random.Generator) -> Shown:
    cluster, turn = place % clusters, place // clusters
    role = _ROLES[turn] if turn < len(_ROLES) else SAMPLE
    x, y = centres[cluster] + random.normal(0, 1.5, 2)
    caption = f"This image contains a {_NOUNS[cluster % len(_NOUNS)]} characterised by soft light." if role == REPRESENTATIVE else None
    confidence = float(random.uniform(0.3, 1))
    return Shown(f"photos/{cluster:04d}/{place:06d}.jpg", cluster, role, confidence, caption, float(x), float(y), files[place % len(files)])
