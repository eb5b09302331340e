"""Which engine `load_backend` takes where vLLM is installed, and what it says of it."""

import logging
import os

import numpy as np
import pytest
import torch
from served import Served

from pipeline.teacher import vllm_backend, vllm_plugin
from pipeline.teacher.load import load_backend
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.teacher.vllm_backend import VllmBackend
from pipeline.teacher.vllm_engine import why_not_served
from storage_schemas.errors import TeacherError

DENSE = Served(model="qwen3")


def test_auto_takes_vllm_where_it_passes_and_logs_the_figures(checkpoints, caplog):
    caplog.set_level(logging.INFO, logger="pipeline.teacher")
    backend = load_backend(DENSE.config(checkpoints("qwen3"), backend="auto"), block_size=None)
    assert isinstance(backend, VllmBackend)
    assert "rows differ from transformers' by at most" in caplog.text
    backend.close()
    backend.close()


@pytest.mark.parametrize(
    ("served", "settings", "reason"),
    [
        (Served(model="narrow"), {}, "attention heads of"),
        (Served(model="window"), {}, "a sliding window only"),
        (DENSE, {"kernel": "eager"}, "teacher.kernel = 'eager'"),
        (DENSE, {"backend": "transformers"}, "teacher.backend asks for it"),
    ],
    ids=["heads", "window", "kernel", "asked"],
)
def test_auto_takes_transformers_elsewhere_and_says_why(
    served, settings, reason, checkpoints, caplog
):
    caplog.set_level(logging.INFO, logger="pipeline.teacher")
    config = served.config(checkpoints(served.model), **{"backend": "auto"} | settings)
    assert isinstance(load_backend(config, block_size=None), TransformersBackend)
    assert "runs on transformers: " in caplog.text
    assert reason in caplog.text


def test_auto_takes_transformers_where_the_check_fails_with_its_figures(
    checkpoints, caplog, monkeypatch
):
    def fail(backend, reference):
        raise TeacherError("got 7 of 52 rows beyond that")

    monkeypatch.setattr(vllm_backend, "check_engine", fail)
    caplog.set_level(logging.INFO, logger="pipeline.teacher")
    config = DENSE.config(checkpoints("qwen3"), backend="auto")
    assert isinstance(load_backend(config, block_size=None), TransformersBackend)
    assert "runs on transformers: got 7 of 52 rows beyond that" in caplog.text


def test_vllm_that_cannot_serve_is_an_error_where_the_recipe_asks_for_it(checkpoints):
    config = Served(model="narrow").config(checkpoints("narrow"))
    with pytest.raises(TeacherError, match="vLLM cannot run teacher"):
        load_backend(config, block_size=None)


@pytest.mark.parametrize("found", ["0.31.2", "0.33.0", "1.0"])
def test_an_untried_release_of_vllm_is_refused(found, checkpoints, monkeypatch, caplog):
    monkeypatch.setattr(vllm_plugin, "version", lambda name: found)
    config = DENSE.config(checkpoints("qwen3"))
    assert f"got {found}" in (why_not_served(config) or "")
    with pytest.raises(TeacherError, match=r">=0\.32,<0\.33"):
        load_backend(config, block_size=None)
    vllm_plugin.register()
    assert "are not served" in caplog.text


def test_starting_an_engine_leaves_the_process_as_it_was(checkpoints):
    def state():
        return (
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING"),
        )

    before = state()
    VllmBackend.load(DENSE.config(checkpoints("qwen3")), block_size=None).close()
    assert state() == before
    assert not torch.distributed.is_initialized()
