"""The Dockerfiles say what the code says, as far as a file can be read."""

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path
from string import Template

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prefect import __version__ as prefect_version

from tests.images import DOCKERFILES, ROOT, rehearse

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENGINES = ("teacher", "remote-code")
STAGE_1_ALONE = {
    "flows/worker.py",
    "flows/teacher_cache.py",
    "flows/results.py",
    "pipeline/benchmarks/local.py",
    "pipeline/cli/app.py",
    "pipeline/cli/plan.py",
    "pipeline/cli/verify.py",
}
images = pytest.mark.parametrize("image", DOCKERFILES)


def steps(image: str) -> list[tuple[str, str]]:
    return rehearse.instructions(DOCKERFILES[image])


def defaults(image: str) -> dict[str, str]:
    return dict(rest.split("=", 1) for name, rest in steps(image) if name == "ARG")


def installed_extras(image: str) -> set[str]:
    runs = " ".join(rest for name, rest in steps(image) if name == "RUN")
    (extras,) = re.findall(r'"\.\[(.+?)\]"', Template(runs).safe_substitute(defaults(image)))
    return set(extras.split(","))


def pins(constraints: Path) -> dict[str, str]:
    lines = [line for line in constraints.read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): pin for name, _, pin in (one.partition("==") for one in lines)}


def in_image(image: str) -> set[str]:
    files, variables = rehearse.context(DOCKERFILES[image]), defaults(image)
    copies = [rest for name, rest in steps(image) if name == "COPY"]
    return {place for rest in copies for _, place in rehearse.copied(rest, variables, files)}


@images
def test_an_image_is_pinned_and_is_not_roots(image):
    fields = dict(steps(image))
    assert re.fullmatch(r"[\w/]+:\d+\.\d+\.\d+[\w.-]+", fields["FROM"]), "a full version"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", fields["USER"])
    assert steps(image)[-4][0] == "USER", "after the last RUN"
    assert json.loads(fields["ENTRYPOINT"]) == ["tidecache"]


@images
def test_every_install_is_constrained(image):
    for name, rest in steps(image):
        if name == "RUN" and "pip install" in rest:
            for install in rest.split("pip install")[1:]:
                assert "-c " in install or "--no-deps" in install, install


@images
def test_what_is_copied_is_there_and_extras_exist(image):
    files = rehearse.context(DOCKERFILES[image])
    for name, rest in steps(image):
        if name == "COPY":
            for source in shlex.split(Template(rest).substitute(defaults(image)))[:-1]:
                assert rehearse.copied(f"{source} .", {}, files), source
    assert installed_extras(image) <= EXTRAS.keys()
    assert {"flows/prefect.yaml", "flows/lost_runs.yaml", "pyproject.toml"} <= {
        str(Path(place)) for place in in_image(image)
    }


def test_the_students_image_has_no_teacher():
    assert not installed_extras("student") & {"teacher", "flash", "remote-code", "all"}
    left_out = in_image("teacher") - in_image("student")
    assert {
        "pipeline/fidelity.py",
        "pipeline/teacher_cache.py",
        "pipeline/teacher/load.py",
    } <= left_out
    assert not [file for file in in_image("student") if "teacher-a" in file or "teacher-b" in file]
    assert "flash-attn" not in DOCKERFILES["student"].read_text()
    (proof,) = [rest for name, rest in steps("student") if name == "RUN" and "python -c" in rest]
    for name in ("vllm", "flash_attn", "pipeline.teacher"):
        assert f"'{name}'" in proof


def test_only_stage_1_asks_for_what_the_students_image_leaves_out():
    files = {str(Path(file)) for file in in_image("student")}
    modules = {
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files
    }
    askers = set()
    for file in files:
        if file.endswith(".py"):
            asked = imported(ast.parse((ROOT / file).read_text()))
            if any(not is_there(name, modules) for name in asked):
                askers.add(file)
    assert askers <= STAGE_1_ALONE


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {
        name for name in names if name.split(".")[0] in ("flows", "pipeline", "storage_schemas")
    }


def is_there(name: str, modules: set[str]) -> bool:
    return name in modules or any(module.startswith(f"{name}.") for module in modules)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_teachers_pins_are_what_the_project_asks_for(engine):
    pinned = pins(ROOT / "docker" / "constraints" / f"{engine}.txt")
    extras = installed_extras("teacher") - {"teacher"} | {engine}
    asked = [*PROJECT["dependencies"], *(one for extra in extras for one in EXTRAS[extra])]
    for requirement in map(Requirement, [*asked, *EXTRAS["flash"]]):
        pin = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} and {pin}"


@pytest.mark.parametrize("engine", ENGINES)
def test_flash_attn_is_compiled_for_the_cuda_of_torch(engine):
    release, _, _ = dict(steps("teacher"))["FROM"].partition(":")[2].partition("-")
    runtime = pins(ROOT / "docker" / "constraints" / f"{engine}.txt")["nvidia-cuda-runtime"]
    assert runtime.split(".")[:2] == release.split(".")[:2]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_worker_is_newer_than_the_server(engine):
    server = pins(ROOT / "constraints.txt")["prefect"]
    assert server == prefect_version, "what the tests ran with"
    worker = pins(ROOT / "docker" / "constraints" / f"{engine}.txt")["prefect"]
    assert [int(part) for part in worker.split(".")] <= [int(part) for part in server.split(".")]
