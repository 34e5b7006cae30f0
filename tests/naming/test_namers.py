"""Names of clusters by a language model, with a fake server on a real socket."""

import json
from collections.abc import Iterator

import pytest

from gsec_core.captioners import pool
from gsec_core.config import PipelineConfig
from gsec_core.errors import GsecError, Refused
from gsec_core.naming.namers import Namer, load_namer, namer_identity
from gsec_core.naming.terms import Description, name_clusters

from ..captioners.server import Response, Server, error, reply

CATS = [Description("This image contains a cat characterised by fur.", "cat", ("fur",))]
DOGS = [Description("This image contains a dog characterised by ears.", "dog", ("ears",))]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(pool, "FIRST_WAIT", 0.01)
    with Server() as started:
        yield started


def namer(server: Server) -> Namer:
    return load_namer(_config("openai:tiny", server.url))


def _config(name: str, url: str = "http://127.0.0.1:9/v1") -> PipelineConfig:
    return PipelineConfig.model_validate({"publish": {"namer": name}, "describe": {"url": url, "patience": 0.1}})


def named(text: str) -> Response:
    return reply(json.dumps({"name": text, "description": f"These are {text}."}))


def names(server: Server, said: list[list[Description]]) -> list[tuple[str, str | None, str]]:
    return [(found.name.name, found.name.description, found.namer) for found in namer(server).name(said, lambda by: None)]


def test_the_model_gets_descriptions_and_terms_and_its_name_is_used(server: Server) -> None:
    server.answer = lambda request: named("house cats" if "a cat" in request.body["messages"][0]["content"] else "hounds")
    assert names(server, [CATS, DOGS]) == [("house cats", "These are house cats.", "tiny"), ("hounds", "These are hounds.", "tiny")]
    assert "Words: cat, fur" in min(request.body["messages"][0]["content"] for request in server.requests)


@pytest.mark.parametrize(
    "text",
    [
        "no idea",
        "{}",
        '{"name": "", "description": "x"}',
        '{"name": 3, "description": "x"}',
        json.dumps({"name": "x" * 99, "description": "y"}),
        '{"name": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_after_an_invalid_reply_the_name_by_terms_is_used(server: Server, text: str) -> None:
    server.answer = lambda request: reply(text)
    [terms] = name_clusters([CATS])
    assert names(server, [CATS]) == [(terms.name, terms.description, "terms")]


def test_a_name_among_other_text_is_found_and_tidied(server: Server) -> None:
    server.answer = lambda request: reply('Sure!\n```json\n{"name": "house\\n cats\\u202e", "description": "Cats."}\n```')
    assert names(server, [CATS]) == [("house cats", "Cats.", "tiny")]


def test_equal_names_are_made_different(server: Server) -> None:
    server.answer = lambda request: named("animals")
    assert [name for name, *_ in names(server, [CATS, DOGS])] == ["animals", "animals, ears"]


def test_for_a_cluster_without_descriptions_the_model_is_not_asked(server: Server) -> None:
    assert names(server, [[]]) == [("cluster 0", None, "terms")]
    assert server.requests == []


def test_if_the_server_declines_a_request_the_name_by_terms_is_used(server: Server) -> None:
    server.says(error(400))
    assert [by for *_, by in names(server, [CATS])] == ["terms"]


def test_if_the_server_fails_at_one_request_the_name_by_terms_is_used(server: Server) -> None:
    server.answer = lambda request: error(500) if "a cat" in request.body["messages"][0]["content"] else named("hounds")
    assert [(name, by) for name, _, by in names(server, [CATS, DOGS])] == [("cat", "terms"), ("hounds", "tiny")]


@pytest.mark.parametrize(("status", "raised"), [(500, GsecError), (503, GsecError), (401, Refused)])
def test_a_server_that_answers_no_request_is_an_error(server: Server, status: int, raised: type[Exception]) -> None:
    server.answer = lambda request: error(status)
    with pytest.raises(raised, match=r"describe\.url"):
        names(server, [CATS])


def test_a_model_that_is_not_served_is_refused_by_its_setting(server: Server) -> None:
    with pytest.raises(Refused, match=r'^publish\.namer = "openai:large": .* has no such model; its models are: tiny\.$'):
        load_namer(_config("openai:large", server.url)).check()
    namer(server).check()


def test_a_server_that_does_not_answer_is_refused() -> None:
    with pytest.raises(Refused, match="Start the server"):
        load_namer(_config("openai:tiny")).check()


@pytest.mark.parametrize("name", ["llm", "openai", "openai:"])
def test_an_unknown_namer_is_refused(name: str) -> None:
    for ask in (load_namer, namer_identity):
        with pytest.raises(Refused, match=r"publish\.namer = .*choose `terms`, `nouns` or `openai:MODEL`"):
            ask(_config(name))  # type: ignore[operator]


def test_the_identity_of_a_namer_covers_the_model_but_not_the_server() -> None:
    assert namer_identity(_config("openai:a", "http://one/v1")) == namer_identity(_config("openai:a", "http://two/v1"))
    assert namer_identity(_config("openai:a")) != namer_identity(_config("openai:b"))
