"""What docker/compose.yaml's services run, on loopback: a real S3 API, PostgreSQL and workers."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.images import SERVICES
from tests.operations import ROOT, TEACHER, Operations, free_port, operations
from tests.s3 import S3Server
from tests.tiny_recipe import write_recipe_file

PASSWORD = "a-password"
POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root


@pytest.fixture
def store():
    server = S3Server()
    yield server
    server.stop()


def test_the_bucket_is_made_once_and_stays(store):
    (program,) = SERVICES["bucket"]["command"]
    environment = os.environ | dict(store.environment) | {"BUCKET": "caches"}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    listed = httpx.get(store.environment["AWS_ENDPOINT_URL"]).text
    assert listed.count("<Name>caches</Name>") == 1
    assert store.requests["PUT"] == 1


@pytest.fixture
def database() -> Iterator[int]:
    """The port of a PostgreSQL with the user, the password and the database of the compose file."""
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    if USER is not None:
        shutil.chown(folder, USER)
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    given = SERVICES["database"]["environment"]
    run = {"user": USER, "cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
    who = ("--username", given["POSTGRES_USER"])
    initdb = (
        POSTGRESQL[-1] / "initdb",
        "--pgdata",
        folder / "data",
        *who,
        "--auth",
        "scram-sha-256",
    )
    subprocess.run([*initdb, "--pwfile", password], **run)
    port = free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = (POSTGRESQL[-1] / "pg_ctl", "--pgdata", folder / "data", "--wait")
    subprocess.run([*control, "--log", folder / "log", "--options", options, "start"], **run)
    try:
        where = ("--host", "127.0.0.1", "--port", str(port))
        createdb = (POSTGRESQL[-1] / "createdb", *where, *who, given["POSTGRES_DB"])
        subprocess.run(createdb, env=os.environ | {"PGPASSWORD": PASSWORD}, **run)
        yield port
    finally:
        subprocess.run([*control, "--mode", "immediate", "stop"], **run)
        shutil.rmtree(folder)


def start_worker(server: Operations, name: str, port: str) -> None:
    worker = SERVICES[name]
    program, *arguments = [*worker["entrypoint"], *worker["command"]]
    assert program == "python"
    variables = {
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": port,
    }
    server.launch(name, [sys.executable, *arguments], **variables)


def is_healthy(name: str, port: str) -> bool:
    _, program, *arguments = SERVICES[name]["healthcheck"]["test"]
    assert program == "python"
    there = [argument.replace(":8080/", f":{port}/") for argument in arguments]
    done = subprocess.run([sys.executable, *there], stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not POSTGRESQL, reason="no PostgreSQL is installed")
def test_the_stages_run_in_a_chain_on_postgresql(database, models, tmp_path):
    recipe = write_recipe_file(tmp_path / "chained", models)
    url = SERVICES["server"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    url = re.sub(r"\$\{POSTGRES_PASSWORD.*?\}", PASSWORD, url)
    url = url.replace("@database:5432/", f"@127.0.0.1:{database}/")
    with operations(tmp_path / "server", PREFECT_SERVER_DATABASE_CONNECTION_URL=url) as server:
        variables = {
            "TIDECACHE_RECIPE": str(recipe),
            "TIDECACHE_CACHE": str(recipe.parent / "cache"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        deploy = SERVICES["deploy"]
        for _ in range(2):  # as every `docker compose up` does
            subprocess.run(
                [*deploy["entrypoint"], *deploy["command"]],
                cwd=ROOT,
                env=server.environment | variables,
                check=True,
            )
        assert len(server.api("POST", "deployments/filter", {})) == 2
        automations = server.api("POST", "automations/filter", {})
        assert len(automations) == 2, "one for the chain, one for lost runs"

        ports = {name: str(free_port()) for name in ("teacher-worker", "student-worker")}
        for name, port in ports.items():
            assert not is_healthy(name, port)
            start_worker(server, name, port)
        for name, port in ports.items():
            server.until(lambda name=name, port=port: is_healthy(name, port))
        run = server.run(TEACHER)
        server.ends(run, "COMPLETED")
        server.ends(server.chained(recipe)["id"], "COMPLETED")
    assert (recipe.parent / "student" / "final").is_dir()
