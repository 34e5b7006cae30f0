"""The operations of the API as flat lists, from its OpenAPI description, for the page at its root and for the reference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_METHODS = ("get", "post")


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operation, or a field of an answer."""

    name: str
    kind: str
    """Its type in words."""
    meaning: str


@dataclass(frozen=True)
class Operation:
    """A method of a path."""

    method: str
    path: str
    about: str
    parameters: tuple[Parameter, ...]
    body: str | None
    """Schema or media type of the request's body; None if it has no body."""
    answer: str
    """Schema or media type of the answer."""
    problems: tuple[str, ...]
    """Other statuses and their meanings, except those of `everywhere`."""


@dataclass(frozen=True)
class Schema:
    """An object in an answer."""

    name: str
    about: str
    fields: tuple[Parameter, ...]


def everywhere(described: Mapping[str, Any]) -> tuple[str, ...]:
    """Statuses that every operation may answer with, and their meanings."""
    return tuple(sorted(set.intersection(*({*_problems(one)} for methods in described["paths"].values() for one in methods.values()))))


def operations(described: Mapping[str, Any], root: str) -> list[Operation]:
    """The operations of an OpenAPI document; ``root`` is put before their paths."""
    known = everywhere(described)
    return [
        Operation(
            method.upper(),
            root + path,
            one["description"],
            tuple(_parameter(parameter) for parameter in one.get("parameters", ())),
            _media(one["requestBody"]["content"]) if "requestBody" in one else None,
            _media(one["responses"]["200"]["content"]),
            tuple(problem for problem in _problems(one) if problem not in known),
        )
        for path, methods in described["paths"].items()
        for method, one in methods.items()
        if method in _METHODS
    ]


def schemas(described: Mapping[str, Any]) -> list[Schema]:
    """The schemas of the objects in answers and bodies, by name."""
    found = described["components"]["schemas"]
    return [
        Schema(name, one.get("description", ""), tuple(Parameter(field, _kind(kind), kind.get("description", "")) for field, kind in one["properties"].items()))
        for name, one in sorted(found.items())
        if "properties" in one and name not in ("HTTPValidationError", "ValidationError")
    ]


def _problems(operation: Mapping[str, Any]) -> Iterator[str]:
    return (f"{status}: {answer['description']}" for status, answer in sorted(operation["responses"].items()) if status not in ("200", "422"))


def _parameter(one: Mapping[str, Any]) -> Parameter:
    schema = one["schema"]
    default = f", default {schema['default']}".lower() if schema.get("default") is not None else ""
    return Parameter(one["name"], _kind(schema) + default, one.get("description", ""))


def _media(content: Mapping[str, Any]) -> str:
    return " or ".join(_kind(one["schema"]) if kind == "application/json" else kind for kind, one in content.items())


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(map(_kind, schema['prefixItems']))}]"
        return f"list of {_kind(schema.get('items', {}))}"
    return {"integer": "whole number", "string": "text", "boolean": "true or false"}.get(str(schema.get("type")), str(schema.get("type", "anything")))
