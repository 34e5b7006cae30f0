"""docker-compose.yml as Docker Compose would read it: merged, and with variables filled in."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = ROOT / "deployments/containers"


def compose(**variables: str) -> dict[str, Any]:
    """The file, filled in with ``variables`` as if they were in a user's .env."""
    filled: dict[str, Any] = _filled(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), {"GSEC_IMAGES": "/srv/photos", **variables})
    return filled


def command(service: Mapping[str, Any]) -> list[str]:
    return [str(word) for word in service["command"]]


def environment(service: Mapping[str, Any], places: Mapping[str, str] | None = None) -> dict[str, str]:
    """A service's variables. ``places`` replaces hosts and folders in them, as {"server:4200": "127.0.0.1:53211", "/run/secrets": "/tmp/x"}."""
    values = {}
    for name, value in service.get("environment", {}).items():
        assert isinstance(value, str), f"{name} is {value!r}: without quotes, YAML reads a value as a number or a boolean"
        for place, elsewhere in (places or {}).items():
            value = value.replace(place, elsewhere)
        values[name] = value
    return values


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(one, variables) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, variables) for one in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", lambda found: _variable(variables, *found.groups()), value)
    return value


def _variable(variables: Mapping[str, str], name: str, kind: str, rest: str) -> str:
    if name in variables:
        return variables[name]
    assert kind == "-", f"{name}: {rest}"
    return rest
