"""What docker/compose.yaml promises; `docker compose config` itself is run by hand."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.doc_commands import commands_of
from tests.images import COMPOSE, DOCKERFILES, ROOT, SERVICES

TEXT = (ROOT / "docker" / "compose.yaml").read_text()
TEACHER = DOCKERFILES["teacher"].read_text()
EXAMPLE = dict(
    line.split("=", 1)
    for line in (ROOT / "docker" / "example.env").read_text().splitlines()
    if line and line[0] != "#"
)
DEPLOYMENTS = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text())["deployments"]
AUTOMATIONS = yaml.safe_load((ROOT / "flows" / "lost_runs.yaml").read_text())["automations"]
ONE_SHOT = {"bucket", "deploy"}
WORKERS = {"teacher-worker": "teacher", "student-worker": "student"}
services = pytest.mark.parametrize("name", SERVICES)


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


@services
def test_a_service_is_pinned_confined_and_not_roots(name):
    service = SERVICES[name]
    assert re.search(r":\d+\.\d+[\w.-]*$", service["image"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"]
    assert service["init"]
    if "build" in service:
        dockerfile = ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]
        assert re.search(r"^USER [1-9]", dockerfile.read_text(), re.MULTILINE)
    else:
        assert int(service["user"].split(":")[0]) > 0


@services
def test_a_service_starts_when_what_it_needs_is_healthy_and_is_watched(name):
    service = SERVICES[name]
    for needed, how in service.get("depends_on", {}).items():
        wanted = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
        assert how["condition"] == wanted
    if name in ONE_SHOT:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"


@services
def test_only_loopback_is_published(name):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@services
def test_volumes_are_declared(name):
    for volume in SERVICES[name].get("volumes", []):
        if isinstance(volume, str):
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_every_variable_has_its_line_in_the_example_and_no_secret_a_default():
    used = {found[0] for found in re.findall(r"\$\{(\w+)(:?\?)", TEXT)}
    assert TEXT.count("${") == len(re.findall(r"\$\{\w+:?\?set it in docker/\.env", TEXT))
    assert used == EXAMPLE.keys()
    for name, value in EXAMPLE.items():
        if re.search("PASSWORD|KEY|TOKEN", name):
            assert value == ""
    assert "/docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_example_names_one_cache_in_the_bucket():
    assert EXAMPLE["TIDECACHE_CACHE"].startswith(f"s3://{EXAMPLE['BUCKET']}/")
    assert Path(EXAMPLE["TIDECACHE_RECIPE"]).is_absolute()


@pytest.mark.parametrize(("name", "stage"), WORKERS.items())
def test_a_worker_takes_the_runs_of_its_stage_on_its_gpu(name, stage):
    worker = SERVICES[name]
    assert worker["image"].startswith(f"tidecache-{stage}:")
    assert worker["entrypoint"] == ["python", "-m", "flows.pool_worker"]
    pool, queue = (option(worker["command"], word) for word in ("--pool", "--work-queue"))
    assert {"name": pool, "work_queue_name": queue} in [one["work_pool"] for one in DEPLOYMENTS]
    assert queue == stage
    assert option(worker["command"], "--limit") == "1"
    (gpu,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["capabilities"] == ["gpu"]
    assert stage.upper() in gpu["device_ids"][0]
    assert worker["stop_grace_period"] == "10m"


def test_the_pool_and_the_automation_are_those_that_are_deployed():
    (command,) = SERVICES["deploy"]["command"]
    assert {one["work_pool"]["name"] for one in DEPLOYMENTS} == {
        re.search(r"work-pool create --type process (\S+)", command)[1]
    }
    (automation,) = AUTOMATIONS
    assert f'automation inspect "{automation["name"]}"' in command
    for path in re.findall(r"flows/\S+\.yaml", command):
        assert (ROOT / path).is_file()


def test_secrets_of_the_database_and_the_store_reach_those_that_need_them_alone():
    holders = {name for name, one in SERVICES.items() if "POSTGRES_PASSWORD" in str(one)}
    assert holders == {"database", "server"}
    holders = {name for name, one in SERVICES.items() if "S3_SECRET_KEY" in str(one)}
    assert holders == {"object-store", "bucket", *WORKERS}


def test_the_page_names_services_files_and_arguments_that_there_are():
    commands = [one.text for one in commands_of("docs/containers.md") if "docker " in one.text]
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(command)
        for before, after in pairwise(words):
            if before == "--file":
                assert (ROOT / after).is_file()
            if before == "--build-arg":
                name, _, value = after.partition("=")
                assert re.search(rf"^ARG {name}=", TEACHER, re.MULTILINE)
                assert (ROOT / "docker" / "constraints" / f"{value}.txt").is_file()
            if before in ("exec", "stop") or words[words.index(before) - 1] == "--entrypoint":
                assert after in SERVICES
