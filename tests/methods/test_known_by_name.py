"""Code above the table of methods must not name any method. import-linter checks the imports; this checks the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gsec_core
from gsec_core.methods import BUILT_IN, DEFAULT

ROOT = Path(gsec_core.__file__).parents[1]
PLACES = ("gsec_core/stages", "gsec_core/results", "gsec_core/report", "gsec_core/naming", "gsec_core/pipeline.py", "tasks", "flows")

NAMES = {method.name for method in BUILT_IN}


def known(source: str) -> Iterator[str]:
    """Methods that code names: as a section of the settings, as a value, or in a comparison. The default method has the product's name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in NAMES and isinstance(node.ctx, ast.Load):
            yield f"{node.lineno}: .{node.attr}"
        if isinstance(node, ast.Constant) and node.value in NAMES - {DEFAULT}:
            yield f"{node.lineno}: {node.value!r}"
        if isinstance(node, ast.Compare | ast.Subscript):
            yield from (f"{node.lineno}: {part.value!r}" for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value == DEFAULT)


@pytest.mark.parametrize("place", PLACES)
def test_no_method_is_named_in_code_above_the_table_of_methods(place: str) -> None:
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    assert not [f"{file.relative_to(ROOT)}:{found}" for file in files for found in known(file.read_text())]


@pytest.mark.parametrize("source", ["config.tac.max_steps", "config.gsec", "x = 'zero-shot'", "method == 'gsec'", "sections['gsec']", "m in ('a', 'gsec')"])
def test_the_search_finds_code_that_names_a_method(source: str) -> None:
    assert list(known(source))
