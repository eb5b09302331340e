"""Verifying: what no hash can tell is found too, and one run names every fault."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash

from pipeline.cache.inspect import scan_views
from pipeline.cache.reader import CacheReader
from pipeline.cache.verify import verify_cache
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import CacheMissingError
from storage_schemas.parquet_layout import TABLES, decode_table, encode_table
from storage_schemas.seal import sealed_fields, unsealed
from storage_schemas.targets import KeptTargets
from storage_schemas.zarr_layout import encode_tokens

SKETCH = {"type": "sketch", "calibration_records": 4, "step": 0.2}
KINDS = {
    "chunks": ("a", {}),
    "chunks and a top k to look at": ("a", {"targets.k": 4}),
    "even tail": ("b", {}),
    "even tail, one pass": ("b", {"noise.compdemo": None}),
    "temperatures in any order": ("b", {"targets.temperatures": [2.0, 1.0, 0.5]}),
    "whole rows": ("b", {"targets.k": 4096, "targets.logits_dtype": "float32"}),
    "mean logit tail": ("b", {"targets.tail": {"type": "mean_logit", "calibration_records": 4}}),
    "sketch": ("b", {"targets.k": 4, "targets.tail": SKETCH}),
    "sketch alone": ("b", {"targets.k": 0, "targets.tail": SKETCH}),
    "coarse sketch": ("b", {"targets.k": 3, "targets.tail": SKETCH | {"step": 5.0}}),
    "sketch, one large shard": (
        "b",
        {
            "targets.k": 4,
            "targets.tail": SKETCH,
            "noise.views": 6,
            "cache.records_per_part": 100,
        },
    ),
}


@pytest.fixture(scope="module")
def made(make_recipe, tmp_path_factory):
    """kind -> a whole cache of it, made once."""
    caches: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in caches:
            letter, overrides = KINDS[kind]
            recipe = make_recipe(letter, tmp_path_factory.mktemp("cache"), **overrides)
            caches[kind] = Path(run_teacher_cache(recipe).address)
        return caches[kind]

    return make


@pytest.fixture
def copy_of(made, tmp_path):
    return lambda kind: Path(shutil.copytree(made(kind), tmp_path / "cache"))


def faults_of(cache: Path) -> list[tuple[str, str]]:
    return [(fault.where, fault.what) for fault in verify_cache(cache).faults]


def enter(cache: Path, shard: str, name: str, data: bytes) -> None:
    """Puts other bytes in a shard's file, and into the ledger what is true of them."""
    (cache / "shards" / shard / name).write_bytes(data)
    ledger = cache / "ledger" / f"{shard}.json"
    fields = unsealed(ledger.read_bytes())
    for file in fields["files"]:
        if file["path"] == f"shards/{shard}/{name}":
            file |= {"size": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    ledger.write_bytes(sealed_fields(fields))


def change_table(cache: Path, shard: str, name: str, column: str, change) -> None:
    """Rewrites one column; `change` gets its values and returns, or edits, them."""
    table = decode_table(TABLES[name], (cache / "shards" / shard / name).read_bytes())
    columns = {**table.arrays, **table.lists, **table.texts}
    if "token_row" in columns and np.isnan(columns["token_row"]).all():
        columns["token_row"] = None
    columns = {field: columns[field] for field in TABLES[name]}
    if column in table.lists:
        change(values := columns[column].values.copy())
        columns[column] = type(columns[column])(values=values, lengths=columns[column].lengths)
    else:
        columns[column] = columns[column].copy()
        change(columns[column])
    enter(cache, shard, name, encode_table(TABLES[name], columns))


def change_tokens(cache: Path, shard: str, change) -> None:
    """Rewrites the token rows; `change` returns the fields that are other."""
    reader = CacheReader.open(cache)
    entry = next(entry for entry in reader.entries if entry.shard == shard)
    basis, kept = reader.read_basis(), reader.identity.kept
    content = reader.read_shard(entry, None if basis is None else basis.coder)
    rows = KeptTargets.joined([view.targets.tokens for view in content.views])
    fields = {name: getattr(rows, name) for name in KeptTargets.__dataclass_fields__}
    rows = KeptTargets(**(fields | change(rows)))
    is_joint_M = np.concatenate(
        [
            np.repeat(size > 1, size)
            for view in content.views
            for size in np.diff(
                content.examples[view.example].chunks_C4[view.targets.chunk_C, :2], axis=1
            )[:, 0]
        ]
    )
    for name, data in encode_tokens(rows, kept, basis, is_joint_M).items():
        enter(cache, shard, f"tokens.zarr/{name}", data)


def first_shard(cache: Path) -> str:
    return min(path.stem for path in (cache / "ledger").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_as_it_was_made_is_sound(kind, made):
    cache = made(kind)
    report = verify_cache(cache)
    assert report.faults == ()
    assert report.unlisted == ()
    assert report.is_sound
    entries = CacheReader.open(cache).entries
    assert report.shards == report.sound_shards == len(entries)
    assert report.views == sum(entry.counts.num_views for entry in entries) > 0
    assert report.token_rows == sum(entry.counts.num_token_rows for entry in entries)
    manifest = json.loads((cache / "manifest.json").read_text())
    listed = [*manifest["vocabularies"], *manifest["basis"]]
    listed += [file.model_dump() for entry in entries for file in entry.files]
    assert report.files == len(listed)
    assert report.num_bytes == sum(file["size"] for file in listed)


def test_a_cache_that_was_extended_is_sound(make_recipe, tmp_path):
    for views in (1, 3):
        run_teacher_cache(make_recipe("a", tmp_path, **{"noise.views": views}))
    report = verify_cache(tmp_path / "cache")
    assert report.is_sound
    assert (report.examples, report.views) == (12, 36)


def test_a_cache_in_an_object_store_is_verified_there(make_recipe, bucket, tmp_path):
    recipe = make_recipe("b", tmp_path, **{"cache.path": f"{bucket}/cache"})
    run_teacher_cache(recipe)
    report = verify_cache(recipe.cache.path)
    assert report.is_sound
    assert report.unlisted == ()
    assert report.shards == 3


def first_with(values: np.ndarray, wanted: bool) -> int:
    return int(np.flatnonzero(values == wanted)[0])


def unmask(values: np.ndarray) -> None:
    values[first_with(values, True)] = False


def scale(values: np.ndarray) -> None:
    values[1] *= 0.5


def exchange(values: np.ndarray) -> None:
    """The largest and the smallest change places."""
    low, high = values.argmin(), values.argmax()
    values[[low, high]] = values[[high, low]]


def other_pass(values: np.ndarray) -> None:
    values[0] = 1 - values[0]


def one_more(values: np.ndarray) -> None:
    values[0] += 1


def positive(values: np.ndarray) -> None:
    values[0] = 0.5


@pytest.mark.parametrize(
    ("kind", "table", "column", "change", "message"),
    [
        ("chunks", "views.parquet", "is_masked", unmask, "expected the mask that seed 0 gives"),
        ("even tail", "views.parquet", "is_masked", unmask, "expected "),
        ("chunks", "views.parquet", "time", scale, "expected the time that seed 0 gives"),
        ("even tail", "chunks.parquet", "pass", other_pass, "expected the pass that seed 0 gives"),
        ("even tail, one pass", "chunks.parquet", "pass", other_pass, "expected the pass"),
        ("whole rows", "chunks.parquet", "logp", exchange, "a true token no likelier than its"),
        (
            "chunks and a top k to look at",
            "chunks.parquet",
            "logp",
            exchange,
            "expected chunks' logp to be the sum",
        ),
        ("chunks", "chunks.parquet", "logp", positive, "of chunks of at most 0, got others in"),
        ("chunks", "chunks.parquet", "chunk", one_more, "expected the answered chunks"),
        ("chunks", "chunks.parquet", "s1", one_more, "got a column 's1' that contradicts it"),
        ("even tail", "chunks.parquet", "token_row", one_more, "got a column 'token_row'"),
        ("chunks", "examples.parquet", "is_target", unmask, "expected chunks on maskable"),
    ],
)
def test_what_a_table_says_is_checked_though_its_hash_is_right(
    kind, table, column, change, message, copy_of
):
    cache = copy_of(kind)
    shard = first_shard(cache)
    change_table(cache, shard, table, column, change)
    found = faults_of(cache)
    assert found
    assert {where for where, _ in found} == {f"shard {shard}"}
    assert any(message in what for _, what in found), found


def with_row(array: np.ndarray, row: int, values) -> np.ndarray:
    changed = array.copy()
    changed[row] = values
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: {"logits_MK": with_row(rows.logits_MK, 2, rows.logits_MK[2, ::-1])},
            "expected kept logits from high to low, got others in 1 of",
        ),
        (
            lambda rows: {"ids_MK": with_row(rows.ids_MK, 2, rows.ids_MK[2, :1])},
            "expected each kept id once",
        ),
        (
            lambda rows: {"ids_MK": with_row(rows.ids_MK, 2, np.arange(4090, 4106))},
            "expected kept ids below 4096",
        ),
        (
            lambda rows: {"logsumexp_MJ": rows.logsumexp_MJ - 3},
            "expected a logsumexp at T = 1.0 of at least the kept logits' own",
        ),
        (
            lambda rows: {"logsumexp_MJ": rows.logsumexp_MJ + 8},
            "expected a logsumexp at T = 2.0 that the smallest kept logit allows",
        ),
        (
            lambda rows: {"logsumexp_MJ": rows.logsumexp_MJ[:, ::-1]},
            "expected T logsumexp(z / T) to rise from T = 1.0 to 2.0",
        ),
        (
            lambda rows: {"logsumexp_MJ": with_row(rows.logsumexp_MJ, 1, np.nan)},
            "expected a finite logsumexp, got others in 1 of",
        ),
    ],
)
def test_token_rows_are_checked_against_one_another(change, message, copy_of):
    cache = copy_of("even tail")
    shard = first_shard(cache)
    change_tokens(cache, shard, change)
    found = faults_of(cache)
    assert {where for where, _ in found} == {f"shard {shard}"}
    assert any(message in what for _, what in found), found


def test_sketches_of_other_rows_are_found(copy_of):
    cache = copy_of("sketch, one large shard")
    shard = first_shard(cache)
    change_tokens(cache, shard, lambda rows: {"sketch_MR": rows.sketch_MR[::-1]})
    ((where, what),) = faults_of(cache)
    assert where == f"shard {shard}"
    assert "expected sketches of these rows" in what


def test_counts_are_checked_against_the_ledger(copy_of):
    cache = copy_of("chunks")
    shard = first_shard(cache)
    ledger = cache / "ledger" / f"{shard}.json"
    fields = unsealed(ledger.read_bytes())
    fields["counts"]["num_masked"] += 1
    ledger.write_bytes(sealed_fields(fields))
    ((where, what),) = faults_of(cache)
    assert where == f"shard {shard}"
    assert what.startswith("expected num_masked ")


def test_several_faults_are_all_named(copy_of):
    cache = copy_of("sketch")
    first, second, third = sorted(path.stem for path in (cache / "ledger").iterdir())
    (cache / "shards" / first / "views.parquet").unlink()
    sketch = cache / "shards" / second / "tokens.zarr" / "sketch" / "c" / "0"
    sketch.write_bytes(sketch.read_bytes()[:-1])
    chunks = cache / "shards" / second / "chunks.parquet"
    chunks.write_bytes(chunks.read_bytes().replace(b"PAR1", b"PAR2"))
    (cache / "ledger" / f"{third}.json").write_bytes(b"{}")
    basis = next((cache / "common").glob("*/mean/c/0"))
    basis.write_bytes(b"")
    report = verify_cache(cache)
    assert not report.is_sound
    assert (report.shards, report.sound_shards) == (2, 0)
    said = {(fault.where, fault.what.partition(", got ")[2][:12]) for fault in report.faults}
    assert {where for where, _ in said} == {
        "common/basis.zarr/mean/c/0",
        *(f"shard {shard}" for shard in (first, second, third)),
    }
    assert (f"shard {first}", "no such file") in said
    assert len([fault for fault in report.faults if fault.where == f"shard {second}"]) == 2
    for fault in report.faults:
        assert "make" in fault.to_do
        assert "expected" in fault.what


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_without_a_manifest_the_shards_are_checked_still(damage, copy_of):
    cache = copy_of("chunks")
    shard = first_shard(cache)
    (cache / "manifest.json").unlink() if damage == "missing" else (
        cache / "manifest.json"
    ).write_bytes(b"{}")
    (cache / "shards" / shard / "views.parquet").write_bytes(b"")
    assert [where for where, _ in faults_of(cache)] == ["manifest.json", f"shard {shard}"]


def test_what_is_no_cache_is_said(tmp_path):
    with pytest.raises(CacheMissingError, match=r"expected a cache, got no manifest\.json"):
        verify_cache(tmp_path)


def test_what_nothing_lists_is_told_and_no_fault(copy_of):
    cache = copy_of("chunks")
    shard = first_shard(cache)
    (cache / "ledger" / f"{shard}.json").unlink()  # as if it had never been committed
    (cache / "shards" / "left").mkdir()
    (cache / "common" / "extra").write_bytes(b"")
    report = verify_cache(cache)
    assert report.is_sound
    assert set(report.unlisted) == {f"shards/{shard}", "shards/left", "common/extra"}


def test_nonsense_in_whole_files_is_a_fault_and_no_crash(copy_of):
    cache = copy_of("chunks")
    shard = first_shard(cache)
    change_table(cache, shard, "views.parquet", "example", lambda values: values.fill(99))
    ((where, what),) = faults_of(cache)
    assert where == f"shard {shard}"
    assert what.startswith("expected content of one piece, got: IndexError")
    assert scan_views(cache).collect().height > 0


def test_a_folder_in_a_files_place_and_a_shard_that_lies_elsewhere_are_faults(copy_of, tmp_path):
    cache = copy_of("chunks")
    first, second, _ = sorted(path.stem for path in (cache / "ledger").iterdir())
    views = cache / "shards" / first / "views.parquet"
    views.unlink()
    views.mkdir()
    (cache / "shards" / second).rename(tmp_path / "elsewhere")
    (cache / "shards" / second).symlink_to(tmp_path / "elsewhere")
    (_, of_folder), (_, of_link) = faults_of(cache)
    assert "Is a directory" in of_folder
    assert "got a link to elsewhere" in of_link


def test_a_fault_reads_as_one_sentence(copy_of):
    cache = copy_of("chunks")
    shard = first_shard(cache)
    (cache / "ledger" / f"{shard}.json").write_bytes(b"{}")
    manifest = cache / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"0", b"1", 1))
    of_manifest, of_shard = map(str, verify_cache(cache).faults)
    assert of_manifest.startswith("manifest.json: it was changed or damaged: expected the seal")
    assert of_manifest.endswith("; restore it from a copy, or make the cache anew")
    assert of_shard.startswith(f"shard {shard}: expected a ledger entry in ledger/{shard}.json")
    assert of_shard.count("remove ledger/") == 1
