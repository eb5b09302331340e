"""Records from files and data sets: in order, in parts, and never lost for a neighbor's fault."""

import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.config.records import (
    FilesSource,
    HubSource,
    MixtureSource,
    PromptAndResponseFields,
    RecordsConfig,
)
from pipeline.records.part import RecordIndex
from pipeline.records.source import index_records, read_part
from storage_schemas.errors import RecipeError
from storage_schemas.examples import Message, Record
from storage_schemas.skips import Skip

_PAIR = PromptAndResponseFields(prompt_field="question", response_field="answer")


def _row(i: int) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"What is {i} + 1?"},
        {"role": "assistant", "content": f"{i + 1}\nécole"},
    ]
    return {"id": i, "messages": messages}


def _line(i: int) -> bytes:
    return json.dumps(_row(i), ensure_ascii=False).encode()


def _files(*paths: Path | str, id_field: str | None = "id", **settings: Any) -> FilesSource:
    return FilesSource(type="files", paths=tuple(map(str, paths)), id_field=id_field, **settings)


def _read(config: RecordsConfig, index: RecordIndex) -> Iterator[Record | Skip]:
    for number in range(len(index.parts)):
        yield from read_part(config, index, number)


def _all(config: RecordsConfig, records_per_part: int = 3) -> list[Record | Skip]:
    return list(_read(config, index_records(config, records_per_part)))


def _ids(rows: list[Record | Skip]) -> list[str]:
    return [row.id for row in rows if isinstance(row, Record)]


def _skips(rows: list[Record | Skip]) -> list[Skip]:
    return [row for row in rows if isinstance(row, Skip)]


def _write_lines(path: Path, lines: list[bytes], end: bytes = b"\n") -> Path:
    path.write_bytes(b"".join(line + end for line in lines))
    return path


def _write_parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


# Parts


@given(
    lines=st.lists(st.sampled_from([b"record", b"", b"  \t", b"{broken", b"[1]"]), max_size=25),
    end=st.sampled_from([b"\n", b"\r\n"]),
    has_mark=st.booleans(),
    is_gzipped=st.booleans(),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
@settings(max_examples=150, deadline=None)
def test_any_partition_of_lines_reads_the_same_rows_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    end: bytes,
    has_mark: bool,
    is_gzipped: bool,
    sizes: tuple[int, int],
):
    lines = [_line(i) if line == b"record" else line for i, line in enumerate([*lines, b"record"])]
    content = end.join(lines)  # the last line has no end
    content = b"\xef\xbb\xbf" + content if has_mark else content
    path = tmp_path_factory.mktemp("lines") / ("a.jsonl.gz" if is_gzipped else "a.jsonl")
    path.write_bytes(gzip.compress(content) if is_gzipped else content)
    config = _files(path)
    rows = _all(config, sizes[0])
    assert rows == _all(config, sizes[1])
    assert _ids(rows) == [str(i) for i, line in enumerate(lines) if line == _line(i)]
    assert len(rows) == sum(bool(line.strip()) for line in lines)
    assert [row.where.rpartition(":")[2] for row in rows] == [
        str(i + 1) for i, line in enumerate(lines) if line.strip()
    ]


@given(
    num_rows=st.integers(1, 40),
    row_group_size=st.integers(1, 15),
    sizes=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
@settings(max_examples=60, deadline=None)
def test_any_partition_of_a_parquet_file_reads_the_same_rows_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory,
    num_rows: int,
    row_group_size: int,
    sizes: tuple[int, int],
):
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    config = _files(_write_parquet(path, [_row(i) for i in range(num_rows)], row_group_size))
    rows = _all(config, sizes[0])
    assert rows == _all(config, sizes[1])
    assert _ids(rows) == [str(i) for i in range(num_rows)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_parts_are_read_alone_and_in_any_order(tmp_path: Path, name: str):
    rows = [_row(i) for i in range(10)]
    path = tmp_path / name
    if name == "a.parquet":
        _write_parquet(path, rows, 4)
    else:
        content = b"".join(_line(i) + b"\n" for i in range(10))
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    config = _files(path)
    index = index_records(config, 3)
    assert index.num_records == 10
    assert [part.span.num_records for part in index.parts] == [3, 3, 3, 1]
    assert _ids(list(read_part(config, index, 3))) == ["9"]
    assert _ids(list(read_part(config, index, 1))) == ["3", "4", "5"]


def test_a_part_never_spans_two_files(tmp_path: Path):
    _write_lines(tmp_path / "a.jsonl", [_line(i) for i in range(4)])
    _write_lines(tmp_path / "b.jsonl", [_line(i) for i in range(4, 6)])
    index = index_records(_files(tmp_path / "*.jsonl"), 3)
    names = [Path(part.file).name for part in index.parts]
    assert names == ["a.jsonl", "a.jsonl", "b.jsonl"]
    assert [part.number for part in index.parts] == [0, 1, 2]


def test_a_part_of_a_plain_file_reads_nothing_before_its_first_byte(tmp_path: Path):
    path = _write_lines(tmp_path / "a.jsonl", [_line(i) for i in range(6)])
    config = _files(path)
    index = index_records(config, 3)
    content = path.read_bytes()
    start = index.parts[1].span.start
    path.write_bytes(b"\xff" * start + content[start:])
    assert _ids(list(read_part(config, index, 1))) == ["3", "4", "5"]


def test_a_part_of_a_parquet_file_reads_no_other_row_group(tmp_path: Path):
    path = _write_parquet(tmp_path / "a.parquet", [_row(i) for i in range(6)], 3)
    config = _files(path)
    index = index_records(config, 3)
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    assert _ids(list(read_part(config, index, 1))) == ["3", "4", "5"]


def test_a_part_is_refused_when_its_file_has_become_shorter(tmp_path: Path):
    path = _write_lines(tmp_path / "a.jsonl", [_line(i) for i in range(6)])
    config = _files(path)
    index = index_records(config, 3)
    _write_lines(path, [_line(i) for i in range(5)])
    with pytest.raises(RecipeError, match=r"from line 4, got 1 fewer.*changed"):
        list(read_part(config, index, 1))


_PEAK = """
import sys, tracemalloc
from pydantic import TypeAdapter
from pipeline.config.records import RecordsConfig
from pipeline.records.source import index_records

def peak(path, num_lines):
    files = {"type": "files", "paths": [path], "id_field": "id"}
    config = TypeAdapter(RecordsConfig).validate_python(files)
    tracemalloc.start()
    index = index_records(config, num_lines // 4)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index.parts) == 4
    return size

few, many = sys.argv[1:]
peak(few, 4_000)  # what is imported and cached on the first call
print(peak(few, 4_000), peak(many, 40_000))
"""


def test_indexing_needs_no_more_memory_for_more_records(tmp_path: Path):
    """In a process of its own: tracemalloc counts what every thread of a process allocates."""
    few, many = (
        str(_write_lines(tmp_path / f"{n}.jsonl", [_line(0)] * n)) for n in (4_000, 40_000)
    )
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, few, many], check=True, capture_output=True, text=True
    )
    small, large = map(int, done.stdout.split())
    assert large < small + 20_000  # bytes; 40,000 lines are 5 MB


# What is found


def test_files_are_read_in_the_order_of_their_names_and_each_once(tmp_path: Path):
    for i, name in enumerate(["x/b.jsonl", "y/a.jsonl", "x/c.jsonl"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _write_lines(tmp_path / name, [_line(i)])
    config = _files(tmp_path / "x" / "*.jsonl", tmp_path / "*" / "*.jsonl")
    assert _ids(_all(config)) == ["1", "0", "2"]


def test_a_url_of_any_file_system_is_read():
    with fsspec.open("memory://records/part-1.jsonl", "wb") as file:
        file.write(_line(7) + b"\n")
    assert _ids(_all(_files("memory://records/*.jsonl"))) == ["7"]
    assert _ids(_all(_files("memory://records/part-1.jsonl"))) == ["7"]


def test_a_file_inside_an_archive_is_read(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in.jsonl", _line(7))
    assert _ids(_all(_files(f"zip://*.jsonl::{tmp_path}/a.zip"))) == ["7"]


def test_a_name_with_brackets_is_a_name_before_it_is_a_glob(tmp_path: Path):
    path = _write_lines(tmp_path / "a[1].jsonl", [_line(7)])
    assert _ids(_all(_files(path))) == ["7"]


@pytest.mark.parametrize("name", ["missing.jsonl", "*.jsonl", "no-such-folder/*.parquet"])
def test_a_source_without_files_is_named_in_the_error(tmp_path: Path, name: str):
    with pytest.raises(RecipeError, match=r"expected a file or a glob of files, got none; check"):
        index_records(_files(tmp_path / name), 3)


def test_a_folder_is_refused_with_the_glob_to_write(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"got a folder; write .*/\*\.jsonl"):
        index_records(_files(tmp_path), 3)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("id,question\n")
    with pytest.raises(RecipeError, match=r"a\.csv: expected a name ending in \.jsonl"):
        index_records(_files(tmp_path / "a.csv"), 3)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(RecipeError, match="expected a path or an fsspec URL"):
        index_records(_files("nonsense://a.jsonl"), 3)


def test_a_source_without_a_record_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="expected records, got none"):
        index_records(_files(_write_lines(tmp_path / "a.jsonl", [b"", b" "])), 3)


def test_a_gzip_file_cut_short_is_refused(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(os.urandom(20_000).hex().encode())[:-100])
    with pytest.raises(RecipeError, match=r"expected a whole gzip file.*copy it again"):
        index_records(_files(path), 3)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(RecipeError, match="expected a Parquet file"):
        index_records(_files(tmp_path / "a.parquet"), 3)


def test_a_column_that_a_parquet_file_lacks_is_named_with_those_there_are(tmp_path: Path):
    path = _write_parquet(tmp_path / "a.parquet", [_row(0)], 1)
    with pytest.raises(RecipeError, match="expected the column 'uid', got id, messages"):
        index_records(_files(path, id_field="uid"), 3)


# What identifies it


def test_the_fingerprint_ignores_the_folder_and_the_compression(tmp_path: Path):
    lines = [_line(i) for i in range(5)]
    plain = _write_lines(tmp_path / "a.jsonl", lines)
    (tmp_path / "moved").mkdir()
    moved = _write_lines(tmp_path / "moved" / "a.jsonl", lines)
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    fingerprints = {index_records(_files(path), 3).fingerprint for path in (plain, moved, zipped)}
    assert len(fingerprints) == 1


def test_the_fingerprint_ignores_the_size_of_the_parts(tmp_path: Path):
    config = _files(_write_lines(tmp_path / "a.jsonl", [_line(i) for i in range(5)]))
    assert index_records(config, 1).fingerprint == index_records(config, 4).fingerprint


def test_the_fingerprint_changes_with_content_order_and_fields(tmp_path: Path):
    first = _write_lines(tmp_path / "a.jsonl", [_line(0), _line(1)])
    other = _write_lines(tmp_path / "b.jsonl", [_line(0), _line(2)])
    turned = _write_lines(tmp_path / "c.jsonl", [_line(1), _line(0)])
    configs = [
        _files(first),
        _files(other),
        _files(turned),
        _files(first, other),
        _files(first, id_field=None),
        _files(first, fields=_PAIR),
    ]
    fingerprints = {index_records(config, 3).fingerprint for config in configs}
    assert len(fingerprints) == len(configs)


def test_without_an_id_field_the_id_comes_from_the_messages_alone(tmp_path: Path):
    # sha256 of [{"content":"Hi","role":"user"},{"content":"Ho","role":"assistant"}]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    line = json.dumps({"messages": messages, "source": "a"}).encode()
    other = json.dumps({"source": "b", "messages": messages}).encode()
    path = _write_lines(tmp_path / "a.jsonl", [line, other])
    first, second = _all(_files(path, id_field=None), 1)
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert first.id == second.id == "094cff3843a6acc1"


def test_an_id_seen_before_in_a_part_is_skipped(tmp_path: Path):
    path = _write_lines(tmp_path / "a.jsonl", [_line(0), _line(1), _line(0)])
    (skip,) = _skips(_all(_files(path)))
    assert (skip.reason, skip.record_id, skip.where) == ("duplicate_id", "0", f"{path}:3")


# What is passed over

_BAD = {
    b'{"id": 1, "messages": [}': ("broken_json", "column 24"),
    b'{"id": 1, "mess': ("broken_json", "column 11"),
    b'{"id": "\xff"}': ("broken_json", "byte 9"),
    b'{"id": ' + b"1" * 5000 + b"}": ("broken_json", "Python refuses"),
    b"[" * 100_000: ("broken_json", "Python refuses"),
    b'["id", "messages"]': ("wrong_type", "got list"),
    b'{"id": 1}': ("missing_field", "'messages', got the fields id"),
    b'{"id": 1, "messages": null}': ("missing_field", "'messages', got null"),
    b'{"messages": []}': ("missing_field", "'id'"),
    b'{"id": "", "messages": []}': ("missing_field", "empty text"),
    b'{"id": true, "messages": []}': ("wrong_type", "whole number in 'id', got bool"),
    b'{"id": 1, "messages": []}': ("empty_messages", "at least one message"),
    b'{"id": 1, "messages": "Hi"}': ("wrong_type", "in 'messages', got str"),
    b'{"id": 1, "messages": ["Hi"]}': ("wrong_type", "'messages[0]', got str"),
    b'{"id": 1, "messages": [{"role": "user"}]}': ("missing_field", "'messages[0].content'"),
    b'{"id": 1, "messages": [{"role": "user", "content": 3}]}': ("wrong_type", "got int"),
    b'{"id": 1, "messages": [{"role": "user", "content": ""}]}': ("no_response", "'user'"),
    b'{"id": 1, "messages": [{"role": "user", "content": "\\ud800"}]}': ("bad_text", "surrogate"),
}


@pytest.mark.parametrize("line", _BAD, ids=[f"bad-{i}" for i in range(len(_BAD))])
def test_one_bad_line_is_reported_and_nothing_else_is_lost(tmp_path: Path, line: bytes):
    reason, words = _BAD[line]
    path = _write_lines(tmp_path / "a.jsonl", [_line(7), line, _line(9)])
    rows = _all(_files(path))
    assert _ids(rows) == ["7", "9"]
    skip = rows[1]
    assert isinstance(skip, Skip)
    assert skip.reason == reason
    assert skip.where == f"{path}:2"
    assert words in skip.message


def test_a_skip_names_the_record_where_its_id_could_be_read(tmp_path: Path):
    path = _write_lines(tmp_path / "a.jsonl", [b'{"id": 41, "messages": []}'])
    (skip,) = _skips(_all(_files(path)))
    assert skip.record_id == "41"


def test_a_bad_row_of_a_parquet_file_is_reported_and_nothing_else_is_lost(tmp_path: Path):
    rows = [_row(0), {"id": 1, "messages": None}, {"id": 2, "messages": []}, _row(3)]
    path = _write_parquet(tmp_path / "a.parquet", rows, 2)
    read = _all(_files(path))
    assert _ids(read) == ["0", "3"]
    assert [(s.reason, s.where) for s in _skips(read)] == [
        ("missing_field", f"{path}:row 2"),
        ("empty_messages", f"{path}:row 3"),
    ]


def test_text_of_a_parquet_file_that_is_no_utf8_loses_its_row_only(tmp_path: Path):
    good = pa.array(["a", "b", "c"])
    bad = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": good, "question": good, "answer": bad}), path)
    read = _all(_files(path, fields=_PAIR))
    assert _ids(read) == ["a", "c"]
    assert [skip.reason for skip in _skips(read)] == ["bad_text"]


# Fields and settings


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_two_fields_make_one_question_and_one_answer(tmp_path: Path, name: str):
    row = {"question": "1 + 1?", "answer": "2", "more": [1, 2]}
    path = tmp_path / name
    if name == "a.parquet":
        _write_parquet(path, [row], 1)
    else:
        _write_lines(path, [json.dumps(row).encode()])
    (record,) = _all(_files(path, fields=_PAIR, id_field=None))
    assert isinstance(record, Record)
    assert record.messages == (
        Message(role="user", content="1 + 1?"),
        Message(role="assistant", content="2"),
    )


def _validated(settings: dict[str, Any]) -> FilesSource | HubSource:
    return TypeAdapter[FilesSource | HubSource](RecordsConfig).validate_python(settings)


def test_a_recipe_chooses_its_source_and_fields_by_type():
    fields = {"type": "prompt_and_response", "prompt_field": "q", "response_field": "a"}
    config = _validated({"type": "files", "paths": ["a.jsonl"], "fields": fields})
    assert config.fields == PromptAndResponseFields(prompt_field="q", response_field="a")
    hub = {"type": "hub", "name": "owner/data", "revision": "main", "split": "train"}
    assert isinstance(_validated(hub), HubSource)


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "files", "paths": []},
        {"type": "files", "paths": ["a"], "split": "train"},
        {"type": "files", "paths": ["a"], "fields": {"type": "messages", "prompt_field": "q"}},
        {"type": "hub", "name": "owner/data", "split": "train"},
        {"type": "csv", "paths": ["a"]},
    ],
)
def test_a_setting_that_is_missing_or_would_have_no_effect_is_an_error(settings: dict[str, Any]):
    with pytest.raises(ValidationError):
        _validated(settings)


def test_one_field_cannot_be_question_and_answer():
    with pytest.raises(ValidationError, match="are both 'text'; name two different fields"):
        PromptAndResponseFields(prompt_field="text", response_field="text")


# Data sets


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")
    folder = tmp_path / "numbers"
    (folder / "data").mkdir(parents=True)
    _write_parquet(folder / "data" / "train.parquet", [_row(i) for i in range(7)], 2)
    _write_parquet(folder / "data" / "test.parquet", [_row(i) for i in range(7, 9)], 2)
    return folder


def _hub(name: Path | str, split: str = "train", **settings: Any) -> HubSource:
    return HubSource(
        type="hub", name=str(name), revision="main", split=split, id_field="id", **settings
    )


def test_a_data_set_reads_the_same_for_any_size_of_parts(data_set: Path):
    rows = _all(_hub(data_set), 3)
    assert _ids(rows) == [str(i) for i in range(7)]
    assert rows == _all(_hub(data_set), 5)
    assert _ids(_all(_hub(data_set, "test"))) == ["7", "8"]


def test_the_fingerprint_of_a_data_set_is_stable_and_tells_splits_apart(data_set: Path):
    train = index_records(_hub(data_set), 3).fingerprint
    assert train == index_records(_hub(data_set), 2).fingerprint
    assert train != index_records(_hub(data_set, "test"), 3).fingerprint


def test_records_whose_response_lacks_a_text_are_no_part_of_a_data_set(data_set: Path):
    chosen = _hub(data_set, response_contains="4")
    assert _ids(_all(chosen)) == ["3"]  # 3 + 1 is 4
    assert index_records(chosen, 3).num_records == 1
    assert index_records(chosen, 3).fingerprint != index_records(_hub(data_set), 3).fingerprint


def test_the_fingerprint_of_a_folder_on_disk_follows_its_content(data_set: Path):
    before = index_records(_hub(data_set), 3).fingerprint
    _write_parquet(data_set / "data" / "train.parquet", [_row(i) for i in range(1, 8)], 2)
    assert index_records(_hub(data_set), 3).fingerprint != before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "validation"}, "with split 'validation'"),
        ({"subset": "algebra"}, "check `name`, `subset`"),
        ({"fields": _PAIR}, "expected the column 'question', got id, messages"),
    ],
)
def test_a_split_subset_or_column_that_a_data_set_lacks_is_an_error(
    data_set: Path, settings: dict[str, Any], words: str
):
    with pytest.raises(RecipeError, match=words):
        index_records(_hub(data_set, **settings), 3)


def test_a_branch_is_indexed_and_read_at_its_commit(
    data_set: Path, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    commit = "0123456789abcdef0123456789abcdef01234567"
    asked: list[str] = []
    load, describe = datasets.load_dataset, datasets.load_dataset_builder

    def described(name: str, subset: str | None, *, revision: str) -> Any:
        builder = describe(name, subset, revision=revision)
        builder.hash = commit
        return builder

    def loaded(name: str, subset: str | None, *, revision: str, split: str) -> Any:
        asked.append(revision)
        return load(name, subset, revision=revision, split=split)

    monkeypatch.setattr(datasets, "load_dataset_builder", described)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    index = index_records(_hub(data_set), 4)
    assert {part.file for part in index.parts} == {f"{data_set}@{commit}"}
    assert _ids(list(read_part(_hub(data_set), index, 1))) == ["4", "5", "6"]
    assert set(asked) == {commit}


# Mixtures


def _mixture(*sources: FilesSource | HubSource) -> MixtureSource:
    return MixtureSource(type="mixture", sources=sources)


@pytest.fixture
def two_kinds(tmp_path: Path) -> tuple[FilesSource, FilesSource]:
    """Conversations by id, and questions with answers, which have none."""
    chats, questions = tmp_path / "b.jsonl", tmp_path / "a.jsonl"
    chats.write_bytes(b"\n".join(map(_line, range(5))))
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(4)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    return _files(chats), _files(questions, id_field=None, fields=_PAIR)


def test_a_mixture_is_its_sources_one_after_the_other(two_kinds: tuple[FilesSource, FilesSource]):
    mixture = _mixture(*two_kinds)
    assert _all(mixture) == [*_all(two_kinds[0]), *_all(two_kinds[1])]
    index = index_records(mixture, 3)
    assert index.num_records == 9
    assert [part.number for part in index.parts] == [0, 1, 2, 3]
    assert [part.span.num_records for part in index.parts] == [3, 2, 3, 1]


def test_a_mixture_is_other_data_in_another_order(two_kinds: tuple[FilesSource, FilesSource]):
    both = {
        index_records(_mixture(*sources), 3).fingerprint for sources in (two_kinds, two_kinds[::-1])
    }
    alone = {index_records(source, 3).fingerprint for source in two_kinds}
    assert len(both | alone) == 4


def test_a_mixture_of_one_is_refused(two_kinds: tuple[FilesSource, FilesSource]):
    with pytest.raises(ValidationError, match="at least 2"):
        _mixture(two_kinds[0])
