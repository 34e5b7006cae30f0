"""Loads the settings from flags, ``GSEC_*`` environment variables (``GSEC_ENCODE__BATCH_SIZE=32``) and a TOML file, in this order of precedence.

Error messages use the user's words: they name the setting, its value, where it comes from, and what to give.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gsec_core.config import PipelineConfig, accepts
from gsec_core.errors import Refused, shortened, without_secrets

_PREFIX, _NO_SETTINGS = "GSEC_", {"GSEC_CAPTIONER_KEY", "GSEC_REPORTS_TOKEN", "GSEC_REPORTS_URL", "GSEC_ROOTS"}

_KINDS: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text that is not empty"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def load_config(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> PipelineConfig:
    """Load settings: flags (``overrides``, nested by section) override the environment, which overrides ``file``, which overrides the defaults.

    ``text = "nouns"`` is short for ``text.source``. Raises Refused naming the setting, its value, where it comes from, and what to give.
    """
    given: list[tuple[str, Mapping[str, Any]]] = [] if file is None else [(f" (from {file})", _from_toml(file))]
    given += [(f" (from {variable})", _nested(setting, os.environ[variable])) for variable, setting in _from_environment()]
    given.append(("", overrides or {}))
    values: Mapping[str, Any] = {}
    for _, more in given:
        values = _over(values, {**more, "text": {"source": more["text"]}} if isinstance(more.get("text"), str) else more)
    for setting, text in _texts(values):
        if text.encode(errors="ignore").decode() != text:  # the name of a file, with bytes that neither records nor Prefect can hold
            shown = shortened(without_secrets(repr(text)), 80)
            raise Refused(f"{setting} = {shown}{_origin(setting, given)}: it is not UTF-8. Rename the file or folder, or give a link to it.")
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise Refused(_in_the_users_words(error.errors()[0], given)) from None


def _from_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise Refused(f"--config {file}: it cannot be read ({error.strerror}). Give a TOML file of settings.") from None
    except ValueError as error:
        raise Refused(f"--config {file}: it is not TOML ({error}). Write `clusters = 10`, texts in quotes, sections as `[encode]`.") from None


def _from_environment() -> Iterator[tuple[str, str]]:
    """Yield variables and the settings that they name. Other GSEC_* variables, which orchestrators set for services, are ignored unless they resemble one."""
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith(_PREFIX) and name not in _NO_SETTINGS:
            setting = name.removeprefix(_PREFIX).replace("__", ".").lower()
            if setting in _fields(PipelineConfig) or _near(setting, 0.8) or ("." in setting and _siblings(setting)):
                yield variable, setting


def _nested(setting: str, value: object) -> dict[str, Any]:
    first, _, rest = setting.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with the values of ``above``, merged section by section."""
    both = [name for name, value in above.items() if isinstance(value, Mapping) and isinstance(below.get(name), Mapping)]
    return {**below, **above, **{name: _over(below[name], above[name]) for name in both}}


def _in_the_users_words(error: ErrorDetails, given: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    setting = _setting(error["loc"], extra=error["type"] == "extra_forbidden")
    origin = _origin(setting, given)
    if error["type"] == "extra_forbidden":  # its value is not shown, since it may be a secret key
        near, there = _near(setting, 0.6), ", ".join(_siblings(setting))
        return f"{setting}{origin}: there is no such setting; {f'did you mean {near}?' if near else f'there are {there}.'}"
    value = without_secrets(json.dumps(error["input"], default=str, ensure_ascii=False))
    return f"{setting} = {shortened(value, 80)}{origin}: {_remedy(setting)}."


def _origin(setting: str, given: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Where the value of a setting comes from, in words; empty for a flag."""
    return next((place for place, values in reversed(given) if _holds(values, setting)), "")


def _texts(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings that are texts, by full name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{section}{name}.")
        elif isinstance(value, str):
            yield section + name, value


def _setting(place: Sequence[int | str], extra: bool) -> str:
    """The setting at a location of an error; for a setting of several types, the location also contains the type that failed."""
    names = [".".join(map(str, place[:length])) for length in range(len(place), 0, -1)]
    return names[0] if extra else next(name for name in names if name in _fields(PipelineConfig))


def _holds(values: object, setting: str) -> bool:
    first, _, rest = setting.partition(".")
    return isinstance(values, Mapping) and first in values and (not rest or _holds(values[first], rest))


def _remedy(setting: str) -> str:
    field = _fields(PipelineConfig)[setting]
    if _is_section(field):
        return f"it is a section; give its settings, such as {next(name for name in _fields(PipelineConfig) if name.startswith(f'{setting}.'))}"
    return f"give {' or '.join(_described(*accepted) for accepted in accepts(field))}"


def _described(kind: object, bounds: Mapping[str, float]) -> str:
    shown = [f"{_BOUNDS[name]} {value:,}" for name, value in bounds.items()]
    return f"{_KINDS.get(kind, f'`{kind}`')}{', ' if shown else ''}{' and '.join(shown)}"


def _near(setting: str, cutoff: float) -> str | None:
    """The setting that was probably meant: one of the same section, or of any section if ``setting`` has none or an unknown one, or is a name in another."""
    section, _, last = setting.rpartition(".")
    if section and _siblings(setting):
        spellings = {name.rpartition(".")[2]: name for name in _siblings(setting)}
        near = next((spellings[near] for near in difflib.get_close_matches(last, spellings, 1, cutoff)), None)
        return near or next((name for name in _fields(PipelineConfig) if name.rpartition(".")[2] == last), None)
    spellings = {spelling: name for name in _fields(PipelineConfig) for spelling in (name.rpartition(".")[2], name)}
    return next((spellings[near] for near in difflib.get_close_matches(setting, spellings, 1, cutoff)), None)


def _siblings(setting: str) -> list[str]:
    """All settings of the section to which this one belongs, or would belong."""
    return [name for name in _fields(PipelineConfig) if name.rpartition(".")[0] == setting.rpartition(".")[0]]


def _fields(settings: type[BaseModel], section: str = "") -> dict[str, FieldInfo]:
    """Fields of all settings and sections, by full name."""
    fields: dict[str, FieldInfo] = {}
    for name, field in settings.model_fields.items():
        fields[section + name] = field
        if _is_section(field):
            fields |= _fields(cast(type[BaseModel], field.annotation), f"{section}{name}.")
    return fields


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
