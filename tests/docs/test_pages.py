"""What the pages name exists: links, files, functions, tests, messages, and recipes that load."""

import ast
import copy
import re
import tomllib
from functools import cache

import pytest
from doc_commands import PAGES, ROOT
from markdown_it import MarkdownIt

from pipeline.config.recipe import parse_recipe
from pipeline.config.sweep import SweepConfig

SOURCES = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("storage_schemas/*.py")]


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def anchors(text: str) -> set[str]:
    """GitHub's names for the headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    for link in links:
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


@cache
def defined_in(path: str) -> set[str]:
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(text_of(path)).body if isinstance(node, kinds)}


def test_every_equation_has_its_function_and_its_tests():
    rows = [line for line in text_of("docs/equations.md").splitlines() if "::" in line]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`([\w/.-]+\.py)::(\w+)`", row)
        assert any(path.startswith("pipeline/") for path, _ in named), row
        assert any(path.startswith("tests/") for path, _ in named), row
        for path, name in named:
            assert name in defined_in(path), f"{path}::{name}"


def test_every_objective_is_among_the_equations():
    from pipeline import objectives

    named = set(re.findall(r"::(\w+)`", text_of("docs/equations.md")))
    formulas = set(objectives.__all__) - {"LossTerm", "masked_nll_from_logp"}
    assert formulas <= named


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "docs/equations.md", "docs/your-own-models.md"]
)
def test_every_file_that_is_named_is_there(page):
    inside = r"`((?:pipeline|storage_schemas|flows|tests|docs)/[\w./-]*)`"
    named = re.findall(inside, text_of(page))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@cache
def messages() -> str:
    """All text of the source, a value that is filled in as N."""
    texts: list[str] = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "N" for p in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_guides_messages_are_those_of_the_code():
    table = text_of("docs/your-own-models.md").partition("| message | cause |")[2]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(quoted) > 10
    assert [message for message in quoted if message not in messages()] == []


def toml_blocks() -> list[tuple[str, int, str]]:
    return [
        (page, token.map[0] + 1, token.content)
        for page in PAGES
        for token in MarkdownIt("commonmark").parse(text_of(page))
        if token.type == "fence" and token.info == "toml" and token.map
    ]


BLOCKS = toml_blocks()


@pytest.mark.parametrize(
    ("page", "line", "text"), BLOCKS, ids=[f"{page}:{line}" for page, line, _ in BLOCKS]
)
def test_a_table_of_a_recipe_fits_the_readmes_recipe(page, line, text):
    """A block with some tables is read as the README's recipe with these instead of its own."""
    tables = tomllib.loads(text)
    if "recipe" in tables:
        assert SweepConfig.model_validate(tables)
        return
    whole = next(text for page, _, text in BLOCKS if page == "README.md" and "[pipeline]" in text)
    recipe = {**copy.deepcopy(tomllib.loads(whole)), **tables}
    for name in ("student", "teacher", "records", "train"):
        recipe[name] = {**tomllib.loads(whole)[name], **recipe[name]}
    assert parse_recipe(recipe, where=f"{page}:{line}")
