"""The documentation: its links work, and the figures on the front page are those on the pages that prove them."""

import re
from pathlib import Path

import pytest

from benchmarks import summary
from gsec_core.pipeline import ALL_STAGES

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in ROOT.rglob("*.md") if not any(part.startswith((".", "gsec-", "build")) for part in path.relative_to(ROOT).parts))


def anchors(page: Path) -> set[str]:
    """A page's anchors as GitHub makes them: lower case, hyphens for spaces, no other punctuation, a number after a repeated heading."""
    found: set[str] = set()
    counts: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        counts[anchor] = counts.get(anchor, -1) + 1
        found.add(anchor if counts[anchor] == 0 else f"{anchor}-{counts[anchor]}")
    return found


def without_code(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "`code`", without_code(page))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+://", link)]


def test_the_readme_and_its_links_are_found() -> None:
    assert ROOT / "README.md" in PAGES
    assert "docs/runs.md#the-published-clustering" in links(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_an_existing_file_and_heading(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_every_page_that_the_code_mentions_exists() -> None:
    packages = [ROOT / package for package in ("gsec_core", "tasks", "flows", "deployments", "benchmarks")]
    code = [path for package in packages for path in package.rglob("*") if path.suffix in (".py", ".toml", ".yaml", ".j2")]
    named = {name for path in code for name in re.findall(r"docs/[a-z/-]+\.(?:md|svg|png|toml)", path.read_text())}
    assert len(named) > 2
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_architecture_page_lists_every_stage_with_its_module_and_its_tables() -> None:
    page = ROOT / "docs" / "architecture.md"
    rows = re.findall(r"^\| `(\w+)` \| `(\w+\.py)` \| .* \| (.*) \|$", page.read_text(), re.MULTILINE)
    drawn = re.search(r"```mermaid(.*?)```", page.read_text(), re.DOTALL)
    assert drawn is not None
    for stage in ALL_STAGES:
        [(module, writes)] = [(module, writes) for name, module, writes in rows if name == stage.name]
        source = (ROOT / "gsec_core" / "stages" / module).read_text()
        assert f"{stage.name}: " in source.partition('"""')[2].partition("\n\n")[0], module
        tables = [table for step in stage.steps for table in step.tables]
        assert re.findall(r"`(\w+)`", writes)[: len(tables)] == tables, stage.name
        assert stage.name in ("assign", "count") or stage.name in drawn[1], stage.name


def test_every_figure_of_the_summary_is_also_on_the_page_that_proves_it() -> None:
    for group in summary.groups():
        text = (summary.FIGURES.parent / group["proof"].partition("#")[0]).read_text()
        assert re.split(r" --|&& ", group["command"])[0].strip() in text, group["command"]
        for row in group["rows"]:
            for figure in (row["gsec"], row["peer"], row.get("published", "")):
                number = re.sub(r" (s|ms|MiB|images/s)$", "", figure)
                assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", text) or figure == "100%", (row["what"], figure)


def test_the_table_and_the_plot_of_the_summary_are_up_to_date() -> None:
    text = summary.PAGE.read_text()
    assert summary.page(text) == text, "run make reference"
    assert summary.PICTURE.read_text() == summary.svg(), "run make reference"
