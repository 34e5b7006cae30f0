"""The explorer: pages that show finished runs, and the forms that curate their clusters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from flows.serve import pages
from flows.serve.access import who_asks
from flows.serve.api import MOST_UPLOAD_BYTES
from flows.serve.collections import Collections
from flows.serve.curating import MOST_AT_ONCE, Forms, asked, in_words, place_after, said
from flows.serve.known import UNPUBLISHED, Known, published_run
from flows.serve.listing import PER_PAGE, Listing, number
from gsec_core.clustering.hierarchy import walk
from gsec_core.errors import Merged, NotFound, Refused
from gsec_core.explore import ClusterRow, Collection, ImageRow, Tree
from gsec_core.report.colours import colour
from gsec_core.report.text import prose, visible

GROUPS_PER_PAGE, ACTS_PER_PAGE = 20, 100

_DEEPEST = 60
"""Number of levels of the tree that fold. Browsers display only a few hundred nested elements."""

_THUMBNAIL_SECONDS = 86_400
"""Seconds for which a browser may cache a thumbnail. The thumbnails of a run never change."""

DONE = "done"
"""Query parameter with the number of the act that a form has just added."""

_NEWEST = 20
"""How many of the newest acts are searched for that number."""

_MOST_FORM_BYTES = 2**20

VIEWS = (("cards", "Cards"), ("tree", "Tree"))

SORTS_OF_CLUSTERS: dict[str, tuple[str, Callable[[ClusterRow], Any]]] = {
    "size": ("size", lambda row: (-row.size, row.key)),
    "name": ("name", lambda row: (row.name.casefold(), row.key)),
    "confidence": ("confidence", lambda row: (row.confidence is None, row.confidence, row.key)),
    "stability": ("stability", lambda row: (row.stability is None, row.stability, row.key)),
}
"""Sort order -> label and sort key: the largest size, the first name, or the lowest confidence or stability comes first."""

SHOWS: dict[str, tuple[str, Callable[[ClusterRow], bool]]] = {
    "all": ("all", lambda row: not row.hidden),
    "curated": ("curated", lambda row: row.curated and not row.hidden),
    "starred": ("starred", lambda row: row.starred and not row.hidden),
    "hidden": ("hidden", lambda row: row.hidden),
}

SORTS_OF_IMAGES = (
    ("confidence", True, "most confident"),
    ("confidence", False, "least confident"),
    ("outlier", True, "farthest out"),
    ("date", True, "newest"),
    ("name", False, "name"),
)


@dataclass(frozen=True)
class Message:
    """Message about the act that was just added."""

    text: str
    undo: int | None
    """Number of the act that the undo button undoes; None if there is no button."""


@dataclass(frozen=True)
class Site:
    """Values that every page of a collection shows."""

    base: str
    """Address of the run."""
    run: str
    name: str
    corpus: str
    created: str
    page: str
    """The link in the page's head that is the current page."""
    published: str | None
    """Id of the run that its pipeline publishes now."""
    here: str
    """Address of this page."""
    curate: bool
    token: str
    """Token of the page's forms."""
    message: Message | None
    most: int = MOST_AT_ONCE
    """Maximal number of images of an act on a whole list."""


class Explorer:
    """The pages of all finished runs of several stores."""

    def __init__(self, stores: Sequence[Known], collections: Collections, curate: bool = False) -> None:
        """``curate``: whether pages have forms for curation, and their acts are accepted."""
        self._stores = stores
        self._collections = collections
        self._curate = curate
        self._forms = Forms()

    def routes(self) -> list[Route]:
        """The routes of all pages. Starlette runs functions that are not coroutines in threads: they read stores, maybe over a network."""
        of_run = "/runs/{run}"
        return [
            Route("/static/{name}", pages.static),
            Route("/explore/{pipeline}", self._published),
            Route(f"{of_run}/explore", partial(self._told, self._clusters)),
            Route(f"{of_run}/clusters/{{key}}", partial(self._told, self._cluster)),
            Route(f"{of_run}/images", partial(self._told, self._images)),
            Route(f"{of_run}/images/{{id}}", partial(self._told, self._image)),
            Route(f"{of_run}/images/{{id}}/thumbnail.jpg", partial(self._told, self._thumbnail)),
            Route(f"{of_run}/search", partial(self._told, self._search)),
            Route(f"{of_run}/search", self._searched, methods=["POST"]),
            Route(f"{of_run}/map", partial(self._told, self._map)),
            Route(f"{of_run}/map.bin", partial(self._told, self._points)),
            Route(f"{of_run}/points/{{place}}", partial(self._told, self._point)),
            Route(f"{of_run}/duplicates", partial(self._told, self._duplicates)),
            Route(f"{of_run}/curation", partial(self._told, self._log)),
            *([Route(f"{of_run}/curation", self._curated, methods=["POST"])] if self._curate else []),
        ]

    # How requests are answered

    def _told(self, answer: Callable[[Collection, Request], Response], request: Request) -> Response:
        """Answer from the collection of the request; if something is missing or invalid, with a page that says so."""
        try:
            collection = self._collections.open(request.path_params["run"])
        except Refused as error:
            return PlainTextResponse(f"{error}\n", 404)
        try:
            return answer(collection, request)
        except Merged as error:
            return self.refused(collection, request, str(error), 404, f"/runs/{collection.run.id}/clusters/{error.into}", f"Cluster {error.into}")
        except Refused as error:
            return self.refused(collection, request, str(error), 400 if request.method == "POST" else 404)

    def site(self, collection: Collection, request: Request, page: str) -> Site:
        """The values of a page's head."""
        run = collection.run
        own = [store for store in self._stores if store.url == run.files.url]  # another store may publish under the same name
        query = urlencode([pair for pair in request.query_params.multi_items() if pair[0] != DONE])
        return Site(
            base=f"/runs/{run.id}",
            run=run.id,
            name=collection.pipeline,
            corpus=collection.context.corpus.name,
            created=run.request()["created"],
            page=page,
            published=published_run(own, collection.pipeline),
            here=f"{quote(request.scope['path'])}{'?' if query else ''}{query}",
            curate=self._curate,
            token=self._forms.token(run.id, who_asks(request)),
            message=self._done(collection, request),
        )

    def _done(self, collection: Collection, request: Request) -> Message | None:
        """Message about the act just added, if a form led to this page."""
        given = request.query_params.get(DONE)
        newest = () if given is None else collection.curation(0, _NEWEST).rows
        act = next((act for act in newest if str(act.number) == given), None)
        if act is None or act.undone:  # an undone act is not news any more: the reader went back to the page, or loaded it again
            return None
        return Message(f"{in_words(act, _names(collection))}.", act.number if self._curate else None)

    def refused(self, collection: Collection, request: Request, why: str, status: int, link: str | None = None, to: str = "Back") -> Response:
        """A page that tells why a request was refused, with a link ``to`` another page if one is given."""
        title = "Not found" if status == 404 else "Not done"
        return pages.explorer("refused", status, site=self.site(collection, request, ""), title=title, why=why, link=link, to=to)

    # Pages

    def _published(self, request: Request) -> Response:
        """Permanent address of the explorer of the run that a pipeline publishes: a redirect to it."""
        run_id = published_run(self._stores, request.path_params["pipeline"])
        if run_id is None:
            raise HTTPException(404, UNPUBLISHED)
        return RedirectResponse(f"/runs/{run_id}/explore", 302)

    def _clusters(self, collection: Collection, request: Request) -> Response:
        given = request.query_params
        now = {
            "view": _one_of("view", given.get("view", "cards"), dict(VIEWS)),
            "sort": _one_of("sort", given.get("sort", "size"), SORTS_OF_CLUSTERS),
            "show": _one_of("show", given.get("show", "all"), SHOWS),
            "find": given.get("find", "").strip()[:100],
        }
        every = collection.clusters(hidden=True)
        images = sum(row.size for row in every if not row.hidden)
        shown = [row for row in every if SHOWS[now["show"]][1](row) and _is_called(row, now["find"])]
        shown.sort(key=SORTS_OF_CLUSTERS[now["sort"]][1])
        page = number("page", given.get("page", "1"))
        last = _last(page, len(shown), PER_PAGE)
        site = self.site(collection, request, "Clusters")

        def address(**changes: str | int) -> str:
            return f"{site.base}/explore?{urlencode(now | changes)}"

        return pages.explorer(
            "clusters",
            site=site,
            images=images,
            left_out=len(collection) - images,
            every=sum(not row.hidden for row in every),
            rows=shown[(page - 1) * PER_PAGE : page * PER_PAGE],
            now=now | {"page": page},
            last=last,
            views=VIEWS,
            sorts=[(name, label) for name, (label, _) in SORTS_OF_CLUSTERS.items()],
            shows=[(name, label) for name, (label, _) in SHOWS.items()],
            address=address,
            page_address=lambda page: address(page=page),
            tree=list(_steps(collection.tree())) if now["view"] == "tree" else [],
            now_in={key: row for row in every for key in (row.key, *row.merged)},
        )

    def _cluster(self, collection: Collection, request: Request) -> Response:
        key = number("key", request.path_params["key"])
        listing, cluster = replace(_listing(request), key=key), collection.cluster(key)
        if cluster.hidden:  # its page shows its images, which are all hidden with it
            return self._gallery("cluster", collection, request, replace(listing, hidden=True), cluster=cluster, heading="Images", hiding=None)
        return self._gallery("cluster", collection, request, listing, cluster=cluster, heading="Images")

    def _images(self, collection: Collection, request: Request) -> Response:
        listing = _listing(request)
        title = "Images in the chosen part of the map" if listing.within else "All images"
        return self._gallery("images", collection, request, listing, title=title, heading=None, page_of="Images")

    def _search(self, collection: Collection, request: Request) -> Response:
        given = request.query_params
        words, like = given.get("q"), given.get("like")
        if not words and like is None:
            return self._without_listing(collection, request, "Search")
        listing = Listing(words=words or None, like=None if words else like)
        title = f"Images like “{prose(words, 120)}”" if words else "More like this"
        return self._gallery(
            "search", collection, request, listing, title=title, words=words or "", like=None if words else collection.image(str(like)), page_of="Search"
        )

    async def _searched(self, request: Request) -> Response:
        """Search by an uploaded image."""
        refuse_large(request, MOST_UPLOAD_BYTES)
        async with request.form(max_files=1, max_fields=5) as form:
            file = form.get("file")
            data = await file.read() if isinstance(file, UploadFile) else b""
            name = file.filename or "" if isinstance(file, UploadFile) else ""
        return await run_in_threadpool(self._told, partial(self._like_upload, data, name), request)

    def _like_upload(self, data: bytes, name: str, collection: Collection, request: Request) -> Response:
        if not data:
            raise Refused("No file came with the search: choose an image.")
        found = collection.like_upload(data, 0, PER_PAGE)
        return self._without_listing(collection, request, f"Images like {prose(name, 120) or 'yours'}", found.rows, found.note)

    def _without_listing(self, collection: Collection, request: Request, title: str, rows: Sequence[ImageRow] = (), note: str | None = None) -> Response:
        """The search page before any search, or with images like one that was sent and not kept, so that there is no address of the result."""
        site = self.site(collection, request, "Search")
        return pages.explorer(
            "search",
            site=site,
            title=title,
            heading=None,
            words="",
            like=None,
            listing=Listing(),
            alike=True,
            rows=rows,
            total=len(rows),
            sorts=(),
            hiding=None,
            note=note,
            page=1,
            last=1,
            page_address=str,
            image_address=partial(_plain, site.base),
            clusters=collection.clusters(),
            empty="Enter what to look for, or choose an image.",
        )

    def _gallery(self, template: str, collection: Collection, request: Request, listing: Listing, page_of: str = "", **values: Any) -> Response:
        page = number("page", request.query_params.get("page", "1"))
        found = listing.part(collection, max(0, page - 1) * PER_PAGE, PER_PAGE)
        if page > 1 and not found.rows and DONE in request.query_params:  # the act moved or hid all images of the page
            page = max(1, -(-found.total // PER_PAGE))
            found = listing.part(collection, (page - 1) * PER_PAGE, PER_PAGE)
        last = _last(page, found.total, PER_PAGE)
        site = self.site(collection, request, page_of)

        def image_address(row: ImageRow, place: int) -> str:
            return _of_image(site.base, row.id, listing, found.offset + place + 1)

        hiding = None
        if not listing.searches:
            other = replace(listing, hidden=not listing.hidden)
            hiding = (other.address(site.base), "leave out hidden images" if listing.hidden else "include hidden images")
        shown: dict[str, Any] = {
            "site": site,
            "listing": listing,
            "alike": listing.searches,
            "rows": found.rows,
            "total": found.total,
            "note": found.note,
            "page": page,
            "last": last,
            "sorts": () if listing.searches else SORTS_OF_IMAGES,
            "hiding": hiding,
            "sorted_address": lambda sort, descending: listing.sorted(sort, descending).address(site.base),
            "page_address": lambda page: listing.address(site.base, page),
            "image_address": image_address,
            "clusters": collection.clusters(),
            "title": "",
            "heading": None,
        }
        if "cluster" in values:
            values["title"] = values["cluster"].name
        return pages.explorer(template, **(shown | values))

    def _image(self, collection: Collection, request: Request) -> Response:
        image = collection.image(request.path_params["id"])
        site = self.site(collection, request, "")
        given = {name: value for name, value in request.query_params.items() if name not in ("at", DONE)}
        listing = Listing.of(given)
        place = number("at", request.query_params.get("at", "0"))
        before = after = None
        ids: list[str] = []
        total = 0
        if place:
            first = max(0, place - 2)
            with suppress(NotFound):  # the cluster was merged since, or its split was undone
                part = listing.part(collection, first, 3)
                ids, total = [row.id for row in part.rows], part.total
            here = place - 1 - first
            if ids[here : here + 1] == [image.row.id]:
                before = _of_image(site.base, ids[here - 1], listing, place - 1) if here else None
                after = _of_image(site.base, ids[here + 1], listing, place + 1) if here + 1 < len(ids) else None
            else:
                place = 0  # the list has changed since
        return pages.explorer(
            "image",
            site=site,
            image=image,
            place=place,
            total=total,
            before=before,
            after=after,
            gallery=listing.address(site.base, (place - 1) // PER_PAGE + 1) if place else Listing(key=image.row.key).address(site.base),
            plain_address=partial(_plain, site.base),
            clusters=collection.clusters(),
        )

    def _thumbnail(self, collection: Collection, request: Request) -> Response:
        data = collection.thumbnail(request.path_params["id"])
        if data is None:
            raise HTTPException(404)
        return pages.kept(request, data, "image/jpeg", {"Cache-Control": f"private, max-age={_THUMBNAIL_SECONDS}"})

    def _map(self, collection: Collection, request: Request) -> Response:
        clusters = collection.clusters()
        points = [(row.key, visible(prose(row.name, 120)) or "unnamed", colour(row.key)) for row in clusters]
        return pages.explorer("map", site=self.site(collection, request, "Map"), clusters=clusters, points=points)

    def _points(self, collection: Collection, request: Request) -> Response:
        return pages.kept(request, collection.map_points(), "application/octet-stream")

    def _point(self, collection: Collection, request: Request) -> Response:
        """The image at a point of the map, as JSON."""
        row = collection.map_point(number("point", request.path_params["place"]))
        return JSONResponse({"id": row.id, "uri": visible(prose(row.uri, 300))})

    def _duplicates(self, collection: Collection, request: Request) -> Response:
        page = number("page", request.query_params.get("page", "1"))
        found = collection.duplicates(max(0, page - 1) * GROUPS_PER_PAGE, GROUPS_PER_PAGE)
        last = _last(page, found.total, GROUPS_PER_PAGE)
        site = self.site(collection, request, "Duplicates")
        return pages.explorer(
            "duplicates",
            site=site,
            groups=found.groups,
            total=found.total,
            images=found.images,
            note=found.note,
            page=page,
            last=last,
            page_address=lambda page: f"{site.base}/duplicates?page={page}",
            plain_address=partial(_plain, site.base),
            clusters=collection.clusters(),
        )

    # Curation

    def _log(self, collection: Collection, request: Request) -> Response:
        page = number("page", request.query_params.get("page", "1"))
        found = collection.curation(max(0, page - 1) * ACTS_PER_PAGE, ACTS_PER_PAGE)
        last = _last(page, found.total, ACTS_PER_PAGE)
        site, names = self.site(collection, request, "Curation log"), _names(collection)
        return pages.explorer(
            "curation",
            site=site,
            acts=[(act, in_words(act, names)) for act in found.rows],
            open=sum(act.open is not None for act in found.rows),
            page=page,
            last=last,
            page_address=lambda page: f"{site.base}/curation?page={page}",
        )

    async def _curated(self, request: Request) -> Response:
        """Add the act that a form requests, and show the form's page again."""
        refuse_large(request, _MOST_FORM_BYTES)
        async with request.form(max_files=0, max_fields=MOST_AT_ONCE + 20) as form:
            return await run_in_threadpool(self._told, partial(self._act, form), request)

    def _act(self, form: FormData, collection: Collection, request: Request) -> Response:
        base, who = f"/runs/{collection.run.id}", who_asks(request)
        if not self._forms.wrote(str(form.get("token", "")), collection.run.id, who):
            why = "The form is not from this server, or the server was restarted since. Load the page again, and repeat it."
            return self.refused(collection, request, why, 403)
        try:
            act = said(collection, who=who, **asked(form, collection))
        except Refused as error:
            place = str(form.get("next", ""))
            return self.refused(collection, request, str(error), 400, place if place.startswith(f"{base}/") else None)
        return RedirectResponse(place_after(form, act, collection, base), 303)


def refuse_large(request: Request, most: int) -> None:
    """Raises HTTPException with a sentence if the body is larger than ``most`` bytes, or if its length is not given, as browsers do for a form."""
    length = request.headers.get("content-length", "")
    if not length.isdigit() or "transfer-encoding" in request.headers:  # this header overrides Content-Length
        raise HTTPException(411, "The length of the request is missing, which browsers send with a form.")
    if int(length) > most:
        raise HTTPException(413, f"This is larger than {most // 2**20} MiB, the most that is accepted: send less.")


def _listing(request: Request) -> Listing:
    """Order and filters that the query of a request asks for; what else is listed, the path says."""
    return Listing.of({name: value for name, value in request.query_params.items() if name not in ("key", "q", "like")})


def _names(collection: Collection) -> dict[int, str]:
    return {row.key: row.name for row in collection.clusters(hidden=True)}


def _plain(base: str, row: ImageRow, place: int) -> str:
    return f"{base}/images/{row.id}"


def _of_image(base: str, id: str, listing: Listing, place: int) -> str:
    query = listing.query
    return f"{base}/images/{id}?{query}{'&' if query else ''}at={place}"


def _one_of(name: str, value: str, known: Any) -> str:
    if value not in known:
        raise Refused(f"{name} = {value[:40]}: there are {', '.join(known)}.")
    return value


def _is_called(row: ClusterRow, find: str) -> bool:
    return find.casefold() in row.name.casefold() or find.removeprefix("#") == str(row.key)


def _last(page: int, total: int, size: int) -> int:
    """Number of the last page of ``total`` rows, ``size`` on each. Raises Refused if there is no page number ``page``."""
    last = max(1, -(-total // size))
    if not 1 <= page <= last:
        raise Refused(f"page = {page}: there are {last}.")
    return last


@dataclass(frozen=True)
class Step:
    """One line of the tree: a node that opens, one that closes, or a cluster."""

    level: int
    opens: bool = False
    closes: bool = False
    name: str = ""
    key: int = 0
    clusters: int = 0
    size: int = 0


def _steps(tree: Tree) -> Iterator[Step]:
    """The lines of the tree from the root on, larger halves first. Below level `_DEEPEST` the clusters are listed flat."""
    sizes = [*(size for _, _, size in tree.leaves), *(node.size for node in tree.nodes)]
    for step, node, level in walk([(node.left, node.right) for node in tree.nodes], sizes, _DEEPEST):
        if step == "leaf":
            key, name, size = tree.leaves[node]
            yield Step(level, name=name, key=key, size=size)
        elif step == "open":
            opened = tree.nodes[node - len(tree.leaves)]
            yield Step(level, opens=True, name=opened.name, clusters=opened.clusters, size=opened.size)
        else:
            yield Step(level, closes=True)
