"""Serves a run to explore, and reads the explorer's pages."""

import html.parser
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from starlette.testclient import TestClient

from flows.serve.app import application
from gsec_core.curation import Log
from gsec_core.explore import Collection
from gsec_core.stages.base import Context
from gsec_core.store import Store

SECRET = "a long random text"

HOSTILE = "<img src=x onerror=alert(1)>\u202e.jpg"

ELSEWHERE = "https://elsewhere.example"

PER_PAGE = 20

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr", "circle", "polygon"}


@dataclass
class Shown:
    """A store with a published run."""

    store: Store
    context: Context

    @property
    def base(self) -> str:
        return f"/runs/{self.context.run.id}"

    @property
    def log(self) -> Log:
        return Log(self.store.files, "nightly")

    def collection(self) -> Collection:
        return Collection(self.context.run)


@contextmanager
def served(shown: Shown, curate: bool = False, by_link: bool = False, user: str | None = "ann") -> Iterator[TestClient]:
    token = SECRET if curate else None
    with TestClient(application([shown.store], token, curate=curate, by_link=by_link), base_url="http://127.0.0.1:4280", follow_redirects=False) as client:
        if curate and user is not None:
            client.auth = (user, SECRET)
        yield client


def sent(client: TestClient, shown: Shown, page: str = "/explore", headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    """Send a form of a page as a browser does."""
    found = re.search(r'name="token" value="(\w+)"', client.get(f"{shown.base}/clusters/0").text)
    assert found
    data = {"token": found[1], "next": shown.base + page, **fields}
    headers = {"Origin": "http://127.0.0.1:4280", "Sec-Fetch-Site": "same-origin", **(headers or {})}
    return client.post(f"{shown.base}/curation", data=data, headers=headers)


def title(page: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)
    assert found
    return re.sub(r"<[^>]*>", "", found[1]).strip()


def links(page: str, rel: str) -> list[str]:
    return [found.replace("&amp;", "&") for found in re.findall(rf'<a rel="{rel}" href="([^"]*)"', page)]


def images_of(page: str) -> list[str]:
    """Ids of a page's thumbnails, in order."""
    return re.findall(r"/images/(\w{32})/thumbnail\.jpg", page)


class WellFormed(html.parser.HTMLParser):
    """A parser that fails for an element that is not closed, and for attributes that the policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert not [name for name in names if name.startswith("on") or name == "style"], attrs
        self.ids += [str(names["id"])] if "id" in names else []
        if tag == "img":
            assert {"alt", "width", "height"} <= names.keys()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1] == "p" and tag != "p":
            self.open.pop()
        assert self.open.pop() == tag


def check(answer: httpx.Response, status: int = 200) -> str:
    """The text of a page; asserts its status, that it is well-formed, and that its policy is strict."""
    assert answer.status_code == status, answer.text[:500]
    parser = WellFormed()
    parser.feed(answer.text)
    assert not parser.open
    assert len(set(parser.ids)) == len(parser.ids)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    return answer.text
