"""prefect.yaml and the Dockerfiles say what the code says, as far as a file can be read."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger
from prefect.flows import Flow, load_flow_from_entrypoint
from typer.main import get_command

from flows.events import COMMITTED, match_of
from pipeline.cli.app import app

ROOT = Path(__file__).parents[3]
COMMANDS = get_command(app).commands
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.fixture(scope="module")
def deployed() -> dict[str, dict]:
    text = (ROOT / "flows" / "prefect.yaml").read_text()
    return {one["entrypoint"]: one for one in yaml.safe_load(text)["deployments"]}


def test_every_deployment_is_a_flow_with_these_parameters(deployed):
    assert len(deployed) == 2
    for entrypoint, fields in deployed.items():
        flow = load_flow_from_entrypoint(str(ROOT / entrypoint))
        assert isinstance(flow, Flow)
        assert fields["parameters"].keys() <= flow.parameters.properties.keys()
        assert set(flow.parameters.required) <= fields["parameters"].keys()


def test_the_schedule_and_the_trigger_are_what_the_code_says(deployed):
    (schedule,) = deployed["flows/teacher_cache.py:teacher_cache"]["schedules"]
    CronSchedule(**schedule)
    (fields,) = deployed["flows/student_train.py:student_train"]["triggers"]
    trigger = DeploymentEventTrigger(**fields)
    assert trigger.expect == {COMMITTED}
    assert fields["match"] == match_of("{{ $TIDECACHE_CACHE }}")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_names_what_is_there(dockerfile):
    steps = instructions(dockerfile)
    fields = dict(steps)
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", fields["FROM"]), "a pinned tag"
    for name, arguments in steps:
        if name == "COPY":
            for source in shlex.split(arguments)[:-1]:
                assert (ROOT / source).exists(), source
    copied = {shlex.split(arguments)[0] for name, arguments in steps if name == "COPY"}
    assert {"pipeline", "flows", "storage_schemas"} <= copied
    assert extras_of(dockerfile.read_text()) <= EXTRAS.keys()
    command, subcommand = json.loads(fields["ENTRYPOINT"])
    assert command == "tidecache"
    assert subcommand in COMMANDS
    assert fields["USER"] not in ("root", "0")


def test_there_is_an_image_a_stage_and_the_students_has_no_teacher():
    by_name = {path.name: path.read_text() for path in DOCKERFILES}
    assert by_name.keys() == {"student.Dockerfile", "teacher.Dockerfile"}
    assert extras_of(by_name["teacher.Dockerfile"]) == {
        "teacher",
        "remote-code",
        "flash",
        "object-store",
    }
    assert extras_of(by_name["student.Dockerfile"]) == {"object-store"}


def extras_of(dockerfile: str) -> set[str]:
    """The extras that an image installs, by the defaults of its arguments and by their others."""
    for name, default in re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE):
        dockerfile = dockerfile.replace(f"${{{name}}}", default)
    found = re.findall(r"\.\[([\w,-]+)\]", dockerfile)
    found += re.findall(r"--build-arg \w+=([\w-]+)", dockerfile)
    return {extra for extras in found for extra in extras.split(",")}
