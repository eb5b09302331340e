"""Which engine `load_backend` takes where vLLM is not installed, or may not serve."""

import logging

import pytest

from pipeline.teacher import vllm_plugin
from pipeline.teacher.load import load_backend
from pipeline.teacher.transformers_backend import TransformersBackend
from storage_schemas.errors import TeacherError


@pytest.fixture
def teacher(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_plugin, "find_spec", lambda name: None)
    return make_recipe("b", tmp_path).teacher


def test_auto_takes_transformers_and_says_that_vllm_is_missing(teacher, caplog):
    caplog.set_level(logging.INFO, logger="pipeline.teacher.load")
    backend = load_backend(teacher, block_size=16)
    assert isinstance(backend, TransformersBackend)
    assert "runs on transformers: vLLM is not installed" in caplog.text


def test_vllm_asked_for_and_missing_is_an_error_that_says_how_to_get_it(teacher):
    with pytest.raises(TeacherError, match=r"pip install 'tidecache\[teacher\]'"):
        load_backend(teacher.model_copy(update={"backend": "vllm"}), block_size=16)
