"""The digest of a teacher's weights."""

import shutil

import pytest

from pipeline.config.models import ModelSource
from pipeline.teacher.weights import weights_digest
from storage_schemas.errors import TeacherError


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny.folder / "teacher-b", tmp_path / "elsewhere")


def _digest(folder):
    return weights_digest(ModelSource(model=str(folder)))


def test_equal_content_elsewhere_has_an_equal_digest(tiny, copy):
    assert _digest(copy) == _digest(tiny.folder / "teacher-b")
    assert _digest(copy).startswith("sha256:")
    assert _digest(copy) != _digest(tiny.folder / "student")  # the same shape, other weights


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_one_changed_byte_changes_the_digest(copy, name):
    before = _digest(copy)
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(data)
    assert _digest(copy) != before


def test_a_part_more_or_under_another_name_changes_the_digest(copy):
    before = _digest(copy)
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    renamed = _digest(copy)
    (copy / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert len({before, renamed, _digest(copy)}) == 3


def test_files_that_are_no_weights_change_nothing(copy):
    before = _digest(copy)
    (copy / "README.md").write_text("about")
    (copy / "tokenizer.json").unlink()
    assert _digest(copy) == before


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_weights_or_config_is_refused_with_what_it_holds(copy, missing):
    (copy / missing).unlink()
    with pytest.raises(TeacherError, match=r"expected config\.json and \*\.safetensors.*tokenizer"):
        _digest(copy)
