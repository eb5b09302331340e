import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows.local import names_server

ROOT = Path(__file__).parents[3]
PROFILES = """
active = "mine"
[profiles.mine]
PREFECT_API_URL = "http://mine/api"
[profiles.bare]
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PREFECT_API_URL": "http://x/api"}, True),
        ({"PREFECT_API_URL": ""}, True),  # the active profile names one
        ({}, True),
        ({"PREFECT_PROFILE": "bare"}, False),
        ({"PREFECT_PROFILE": "absent"}, False),
        ({"PREFECT_PROFILES_PATH": "/nowhere"}, False),
    ],
)
def test_a_server_that_the_user_chose_is_respected(tmp_path, environment, expected):
    (tmp_path / "profiles.toml").write_text(PROFILES)
    assert names_server({"PREFECT_HOME": str(tmp_path)} | environment) is expected


def test_the_server_ends_with_its_process_even_if_that_is_killed(tmp_path):
    script = (
        "import os, pathlib, time; from flows.local import ensure_server; "
        f"ensure_server(pathlib.Path({str(tmp_path)!r})); "
        "print(os.environ['PREFECT_API_URL'], os.environ['PREFECT_HOME'], flush=True); "
        "time.sleep(600)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    process = psutil.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    with process.stdout:
        url, home = process.stdout.readline().split()
        assert home == str(tmp_path)
        with urllib.request.urlopen(f"{url}/health") as response:
            assert response.status == 200
        (server,) = process.children(recursive=True)
        process.kill()
        process.wait()
        assert psutil.wait_procs([server], timeout=30)[1] == []
