"""Prefect without setting anything up: a server of our own, for as long as this process runs.

Prefect reads its settings when it is first imported: so this comes before that.
"""

import atexit
import os
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

STARTUP_SECONDS = 180
_END_SECONDS = 10


def ensure_server(home: Path, *, scheduling: bool = False, is_quiet: bool = False) -> None:
    """Points Prefect at a server: the user's own if one is named, else one with its data in `home`.

    `scheduling` also runs the server's background services: schedules and triggers need them.
    `is_quiet` keeps Prefect's log off a terminal that shows the progress itself.
    """
    if names_server(os.environ):
        return
    assert "prefect" not in sys.modules, "prefect was imported before its settings were made"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(home.resolve()))
    os.environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    if is_quiet:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ["PREFECT_API_URL"] = _start(home, scheduling=scheduling)


def names_server(environment: Mapping[str, str]) -> bool:
    """Whether the user chose a server, in the environment or in the active Prefect profile."""
    if environment.get("PREFECT_API_URL"):
        return True
    home = environment.get("PREFECT_HOME", "~/.prefect")
    file = environment.get("PREFECT_PROFILES_PATH", f"{home}/profiles.toml")
    try:
        profiles = tomllib.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return False  # without profiles, or with some that Prefect itself will complain of
    active = environment.get("PREFECT_PROFILE", profiles.get("active", ""))
    return bool(profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL"))


def _start(home: Path, *, scheduling: bool) -> str:
    log = home / "server.log"
    settings = {"PREFECT__SERVER_FINAL": "1", "PREFECT_SERVER_UI_ENABLED": "false"}
    if not scheduling:
        settings["PREFECT__SERVER_EPHEMERAL"] = "1"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.server_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=os.environ | settings,
            start_new_session=True,  # Ctrl-C is for the run, which still has its end to report
        )
    atexit.register(_end, server)
    assert server.stdout is not None, "its output is a pipe"
    port = server.stdout.readline().strip().decode()
    server.stdout.close()
    url = f"http://127.0.0.1:{port}/api"
    deadline = time.monotonic() + STARTUP_SECONDS
    while not answers(f"{url}/health"):
        if server.poll() is not None or time.monotonic() > deadline:
            _end(server)
            raise RuntimeError(
                f"expected Prefect's server to answer at {url} within {STARTUP_SECONDS} s, got "
                f"exit code {server.returncode}; see {log}, or run with --no-prefect"
            )
        time.sleep(0.1)
    return url


def answers(url: str) -> bool:
    """Whether something answers there, and says that it is well."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return response.status == 200
    return False


def _end(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None, "its input is a pipe"
    with suppress(BrokenPipeError):
        server.stdin.close()
    try:
        server.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
