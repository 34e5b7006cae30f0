"""Generate the reference pages from the code: `make reference` writes ``docs/reference``, and a test fails if they are out of date."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gsec_core.config import PipelineConfig, accepts
from gsec_core.pipeline import ALL_STAGES
from gsec_core.section import output_settings
from gsec_core.tables import schemas

if TYPE_CHECKING:
    from flows.serve.operations import Parameter

DIRECTORY = Path(__file__).parent.parent / "docs" / "reference"

_MADE = "<!-- made by `make reference` -->\n\n"


def pages() -> dict[str, str]:
    """File name -> Markdown."""
    return {"commands.md": _MADE + commands(), "settings.md": _MADE + settings(), "tables.md": _MADE + tables(), "api.md": _MADE + api()}


def commands() -> str:
    """Every command and its options."""
    from flows.cli import app

    text: str = app.generate_docs(usage_name="gsec")
    return text.rstrip() + "\n"


def settings() -> str:
    """Every setting, section by section."""
    lines = [
        "# Settings",
        "",
        "`--set SECTION.NAME=VALUE`, `GSEC_SECTION__NAME=VALUE` in the environment, or a TOML file (`--config`); the first of these takes precedence.",
        "A setting that does not change the output can be changed in any rerun. If you change one that does, a new run is made, which does only the "
        "stages that depend on it.",
    ]
    top = {name: field for name, field in PipelineConfig.model_fields.items() if not _section(field)}
    lines += ["", "## The run", "", *_rows(PipelineConfig, top, "")]
    for name, field in PipelineConfig.model_fields.items():
        section = _section(field)
        if section is not None:
            lines += ["", f"## {name}", "", str(section.__doc__), "", *_rows(section, section.model_fields, f"{name}.")]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], fields: dict[str, FieldInfo], prefix: str) -> Iterator[str]:
    changing = output_settings(model())
    yield "| setting | takes | default | changes the output | |"
    yield "| --- | --- | --- | --- | --- |"
    for name, field in fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        meaning = _cell(str(field.description))
        yield f"| `{prefix}{name}` | {_kind(field)} | {default} | {'yes' if name in changing else ''} | {meaning} |"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _kind(field: FieldInfo) -> str:
    names: dict[object, str] = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " or ".join(
        ", ".join([names.get(kind, f"`{kind}`"), *(f"{signs[name]} {value:,}" for name, value in bounds.items())]) for kind, bounds in accepts(field)
    )


def tables() -> str:
    """Every table and its columns."""
    makers: dict[str, list[str]] = {"images": ["ingest"], "captions": ["describe"]}
    for stage in ALL_STAGES:
        for table in (table for step in stage.steps for table in step.tables):
            makers.setdefault(table, []).append(stage.name)
    lines = ["# Tables", "", "Parquet shards at `STORE/CORPUS/TABLE/FINGERPRINT/`, with page checksums. Vector lengths are those of the encoder `lite`."]
    for name, schema in schemas().items():
        lines += [
            "",
            f"## {name}",
            "",
            f"Made by stage {' or '.join(f'`{maker}`' for maker in makers[name])}.",
            "",
            "| column | type | |",
            "| --- | --- | --- |",
        ]
        lines += [f"| `{field.name}` | {_type(field)} | {_cell(field.metadata[b'meaning'].decode())} |" for field in schema]
    return "\n".join(lines) + "\n"


def _type(field: Any) -> str:
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        shown = f"{_NAMES.get(str(kind.value_type), kind.value_type)}[{kind.list_size}]"
    elif pa.types.is_list(kind):
        shown = f"list of {_NAMES.get(str(kind.value_type), kind.value_type)}"
    else:
        shown = _NAMES.get(str(kind), str(kind))
    return shown + (", may be null" if field.nullable else "")


_NAMES = {"halffloat": "float16", "float": "float32", "fixed_size_binary[16]": "binary(16)"}
"""Arrow type names that have a more common name."""


def api() -> str:
    """Every operation of the JSON API, and the objects in its answers."""
    from flows.serve.api import ROOT, described
    from flows.serve.operations import everywhere, operations, schemas

    lines = ["# JSON API", "", described()["info"]["description"], ""]
    lines += [
        "`gsec serve` serves the API, this page at `/api/v1/`, and the OpenAPI document for programs at `/api/v1/openapi.json`.",
        "",
        " ".join(everywhere(described())),
    ]
    for one in operations(described(), ROOT):
        said = [f"Answer: `{one.answer}`.", *([] if one.body is None else [f"Body: `{one.body}`."]), *one.problems]
        lines += ["", f"## {one.method} {one.path}", "", one.about, "", " ".join(said), *([""] if one.parameters else []), *_table(one.parameters)]
    for schema in schemas(described()):
        lines += ["", f"## {schema.name}", "", schema.about, "", *_table(schema.fields)]
    return "\n".join(lines) + "\n"


def _table(rows: "Sequence[Parameter]") -> Iterator[str]:
    if rows:
        yield "| name | type | |"
        yield "| --- | --- | --- |"
    for row in rows:
        yield f"| `{row.name}` | {_cell(row.kind)} | {_cell(row.meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the pages."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (DIRECTORY / name).write_text(text)
