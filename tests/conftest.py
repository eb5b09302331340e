"""What every test shares: one thread, no network, and the tiny models of `tiny.py`."""

import os
import sys
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parent))  # `tiny` and `s3`, whatever pytest's import mode

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("shared-machine", deadline=None)  # a busy machine is no failure
settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Tiny models with random weights, a few records, and recipes over them."""
    from tiny import Tiny

    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def remote_code_cache(tmp_path_factory):
    """Where transformers puts the code that checkpoints bring: not into the user's own cache."""
    from transformers import dynamic_module_utils

    folder = tmp_path_factory.mktemp("remote-code")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="session")
def make_recipe(tiny):
    """`make_recipe(kind, folder, **{"noise.views": 3})`: a recipe of pipeline "a" or "b"."""
    return tiny.recipe


@pytest.fixture(scope="session")
def s3_server():
    """A real S3 API on loopback, for the whole session."""
    from s3 import S3Server

    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """The URL of a new, empty bucket that this process and its children can reach."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.before = s3_server.after = None
    return s3_server.make_bucket()
