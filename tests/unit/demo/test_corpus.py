"""The bundled corpus: real functions, cut faithfully; nothing held out was seen by anyone."""

import ast
import json
import sysconfig
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.corpus import (
    ASSETS,
    Split,
    documented_functions,
    is_held_out,
    seen_digests,
    write_jsonl,
)
from storage_schemas.examples import Record

_STDLIB = Path(sysconfig.get_path("stdlib"))
_DECODE = "json/decoder.py::JSONDecoder.decode"
_SPLITS: tuple[Split, Split] = ("train", "held_out")


def _path(record: Record) -> str:
    return record.id.partition("::")[0]


def _normalized(record: Record) -> str:
    return " ".join(record.messages[1].content.split())


def _digest(record: Record) -> int:
    digest = blake2b(_normalized(record).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def test_there_are_thousands_of_training_functions_and_hundreds_held_out():
    assert len(documented_functions("train")) > 4000
    assert len(documented_functions("held_out")) > 300


def test_the_split_is_by_file():
    assert not any(is_held_out(_path(record)) for record in documented_functions("train"))
    assert all(is_held_out(_path(record)) for record in documented_functions("held_out"))


def test_the_split_of_a_path_never_changes():
    # Recorded: the bundled models were trained under this split.
    assert is_held_out("argparse.py")
    assert is_held_out("shutil.py")
    assert not is_held_out("json/decoder.py")
    assert not is_held_out("textwrap.py")


def test_no_held_out_response_is_in_the_training_split():
    trained = {_normalized(record) for record in documented_functions("train")}
    assert not any(_normalized(record) in trained for record in documented_functions("held_out"))


def test_no_held_out_response_was_seen_by_the_bundled_models():
    seen = set(seen_digests().tolist())
    assert not any(_digest(record) in seen for record in documented_functions("held_out"))


def test_the_list_of_seen_responses_is_sorted_unique_and_small():
    digests = seen_digests()
    assert digests.dtype == np.uint64
    assert (np.diff(digests.astype(object)) > 0).all()
    assert (ASSETS / "seen.npy").stat().st_size < 1_000_000


@pytest.mark.skipif(
    sysconfig.get_python_version() != "3.11", reason="the models were trained on Python 3.11"
)
def test_most_training_functions_of_the_python_that_models_saw_are_in_the_list():
    # Not all: a bug-fix release of Python changes a few functions.
    seen = set(seen_digests().tolist())
    records = documented_functions("train")
    assert sum(_digest(record) in seen for record in records) > 0.95 * len(records)


@pytest.mark.parametrize("split", _SPLITS)
def test_ids_and_responses_are_unique(split: Split):
    records = documented_functions(split)
    assert len({record.id for record in records}) == len(records)
    assert len({record.messages[1].content for record in records}) == len(records)


def test_the_library_s_own_tests_are_left_out():
    for split in _SPLITS:
        for record in documented_functions(split):
            assert not {"test", "tests", "idle_test"} & set(_path(record).split("/")), record.id


@pytest.mark.parametrize("split", _SPLITS)
def test_prompt_and_response_make_one_function_again_with_its_docstring(split: Split):
    for record in documented_functions(split):
        prompt, response = (message.content for message in record.messages)
        (node,) = ast.parse(f"{prompt}\n{response}").body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef), record.id
        assert ast.get_docstring(node) is not None, record.id
        assert node.body[1].col_offset == 4, record.id
        assert not response.startswith(("\n", "     ")), record.id


def test_a_response_is_the_source_s_own_text_without_the_indentation_of_its_function():
    (record,) = (r for r in documented_functions("train") if r.id == _DECODE)
    line = int(record.where.rpartition(":")[2])
    source = (_STDLIB / "json/decoder.py").read_text().split("\n")
    prompt, response = (message.content.split("\n") for message in record.messages)
    assert source[line - 1] == "    " + prompt[0]
    cut = [text.removeprefix("    ") for text in source[line - 1 :][: len(prompt) + len(response)]]
    assert cut == prompt + response


def test_records_say_where_they_were_read_and_have_two_turns():
    for record in documented_functions("held_out"):
        assert record.where.startswith(_path(record) + ":")
        assert [message.role for message in record.messages] == ["user", "assistant"]


def test_written_lines_hold_the_same_records(tmp_path: Path):
    records = documented_functions("held_out")[:50]
    write_jsonl(records, tmp_path / "records.jsonl")
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    for record, line in zip(records, lines, strict=True):
        values = json.loads(line)
        assert values["id"] == record.id
        assert [m["content"] for m in values["messages"]] == [m.content for m in record.messages]
