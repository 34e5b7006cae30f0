"""Sections of the settings: frozen models. Every field changes the output unless it is marked `RUNTIME`."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

RUNTIME = "runtime"
"""Marks a field that does not change the output: it is recorded as provenance only."""


class Section(BaseModel):
    """Settings of a stage, of a method, or of the whole pipeline."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def output_settings(settings: BaseModel) -> dict[str, Any]:
    """Values of the fields that change the output, with sections as nested dicts; JSON-serialisable."""
    values: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            values[name] = output_settings(value)
        elif not is_runtime(field):
            values[name] = value
    return values


def is_runtime(field: FieldInfo) -> bool:
    """Whether a field is marked `RUNTIME`."""
    return RUNTIME in field.metadata
