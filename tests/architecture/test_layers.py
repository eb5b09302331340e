"""The layers of the house, as the source says: who may import whom, and what every module shows."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "flows", "storage_schemas")
MATHEMATICS = ("pipeline.diffusion", "pipeline.objectives", "pipeline.targets")
SEES_THE_TEACHER = (
    "pipeline.teacher",
    "pipeline.teacher_cache",
    "pipeline.fidelity",
    "pipeline.plan",
    "pipeline.study",
    "pipeline.demo",
)
HEAVY = ("torch", "transformers", "datasets", "prefect", "vllm", "accelerate")


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    _module(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}


def _is_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that the code imports; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            start = ".".join(above[: len(above) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [start, node.module or ""]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def _imports_of(module: str) -> set[str]:
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return set(_imported(ast.parse(path.read_text(encoding="utf-8")), package))


def _offenders(importers: Iterable[str], forbidden: Iterable[str]) -> list[str]:
    """`importer imports imported`, for each import that a rule forbids."""
    unwanted = tuple(forbidden)
    return [
        f"{module} imports {name}"
        for module in importers
        for name in sorted(_imports_of(module))
        if _is_in(name, unwanted)
    ]


def _within(*packages: str) -> list[str]:
    return [module for module in SOURCES if _is_in(module, packages)]


def _outside(*packages: str) -> list[str]:
    return [module for module in SOURCES if not _is_in(module, packages)]


# The reader of imports


def test_every_form_of_import_is_seen():
    code = """
import a.b as c
from d import e
from . import f
from .g import h
from ..i import j
def lazily():
    import k
    import_module("l.m")
    importlib.import_module("n")
"""
    assert set(_imported(ast.parse(code), "top.sub")) == {
        *("a.b", "d", "d.e", "top.sub", "top.sub.f", "top.sub.g", "top.sub.g.h"),
        *("top.i", "top.i.j", "k", "l.m", "n"),
    }


def test_the_rules_are_about_modules_that_exist():
    for package in (*PACKAGES, *MATHEMATICS, "pipeline.config", "pipeline.teacher"):
        assert _within(package), f"no module in {package}"


# Layers


def test_import_linter_finds_every_contract_kept():
    project = ROOT / "pyproject.toml"
    if not project.exists() or "importlinter" not in tomllib.loads(project.read_text())["tool"]:
        pytest.skip("pyproject.toml has no import-linter contract")
    if find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed (extra 'dev')")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mathematics_knows_no_config_no_storage_and_no_orchestrator():
    forbidden = ("pipeline.config", "prefect", "fsspec", "zarr", "pyarrow", "polars", "datasets")
    assert _offenders(_within(*MATHEMATICS), forbidden) == []


def test_only_the_flows_know_prefect():
    assert _offenders(_outside("flows"), ["prefect"]) == []


def test_only_the_command_line_and_the_demo_import_the_flows():
    assert _offenders(_outside("flows", "pipeline.cli", "pipeline.demo"), ["flows"]) == []


def test_the_command_line_imports_the_flows_lazily():
    for module in _within("pipeline.cli"):
        tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
        at_start = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = set(_imported(ast.Module(at_start, []), module))
        assert not [name for name in names if _is_in(name, ["flows"])], module


def test_only_the_first_stage_and_the_comparisons_see_the_teacher():
    assert _offenders(_outside(*SEES_THE_TEACHER), ["pipeline.teacher"]) == []


def test_the_second_stage_does_not_see_the_first():
    importers = _within(
        "pipeline.sweep",
        "pipeline.student_train",
        "pipeline.train",
        "pipeline.stream",
        "pipeline.student",
    )
    assert _offenders(importers, ["pipeline.teacher", "pipeline.teacher_cache"]) == []


def test_schemas_stand_on_nothing_of_ours_and_nothing_heavy():
    assert _offenders(_within("storage_schemas"), ["pipeline", "flows", *HEAVY]) == []


def test_config_stands_on_itself_and_the_schemas_and_nothing_heavy():
    forbidden = [name for name in _outside("pipeline.config", "storage_schemas") if "." in name]
    assert _offenders(_within("pipeline.config"), ["flows", *forbidden, *HEAVY]) == []


def test_no_source_imports_the_tests():
    assert _offenders(SOURCES, ["tests", "pytest", "hypothesis"]) == []


# What every module shows


@pytest.mark.parametrize("word", ["utils", "util", "common", "misc", "helpers"])
def test_no_module_is_a_drawer_for_what_has_no_name(word: str):
    assert [module for module in SOURCES if word in module.split(".")] == []


def test_every_module_says_what_it_is():
    assert [
        module
        for module, path in SOURCES.items()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ] == []


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(body: Iterable[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
    """Public functions and classes, with the public methods of public classes."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_") and not _is_echo(node):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}.{node.name}")


def _is_echo(node: Definition) -> bool:
    """An overload, a setter, or a method that the base documents."""
    marks = {ast.unparse(mark).split(".")[-1] for mark in node.decorator_list}
    return bool(marks & {"overload", "override", "setter"})


def test_everything_public_says_what_it_is():
    assert [
        name
        for module, path in SOURCES.items()
        for name, node in _public(ast.parse(path.read_text(encoding="utf-8")).body, module)
        if not ast.get_docstring(node)
    ] == []
