"""Tests with real vLLM engines; without vLLM none is collected."""

import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from pipeline.teacher.vllm_plugin import is_installed

sys.path.insert(0, str(Path(__file__).parent))  # `served`
sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))  # `teacher_backend`

collect_ignore_glob = [] if is_installed() else ["test_*.py"]

if is_installed():
    with warnings.catch_warnings():  # of what vLLM itself imports
        warnings.simplefilter("ignore")
        import_module("pipeline.teacher.vllm_plugin.models")


def pytest_collection_modifyitems(items):
    """What vLLM warns of as it starts and runs is none of ours."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for category in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """`checkpoints("qwen3")`: the folder of a tiny random model, written once."""
    from served import Checkpoints

    return Checkpoints(tmp_path_factory.mktemp("vllm"))
