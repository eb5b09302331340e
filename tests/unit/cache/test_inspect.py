import math
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from cache_content import LAYOUT, VOCABULARIES, content_of, identity_of
from polars.testing import assert_frame_equal

from pipeline.cache.inspect import (
    scan_chunks,
    scan_distributions,
    scan_examples,
    scan_positions,
    scan_top_k,
    scan_views,
    token_texts,
)
from pipeline.cache.inspect_rows import conjuncts
from pipeline.cache.inspect_sketches import DISTRIBUTIONS
from pipeline.cache.inspect_tokens import TOP_K
from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import CacheWriter
from pipeline.targets.expand import expand_sketch
from pipeline.targets.sketch import SketchDecoder
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import CacheCorruptError, CacheMissingError

IDENTITY = identity_of(top_k=3, logits_dtype="float16")
TEXTS = {index: f"<{index}>" for index in VOCABULARIES.teacher} | {7: "\ufffd"}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    with CacheWriter.open(path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        for part in range(2):
            for start in (0, 2):
                content = content_of(
                    rng, IDENTITY, part=part, view_start=start, view_stop=start + 2
                )
                writer.commit(content)
        writer.commit(content_of(rng, IDENTITY, part=2, num_examples=0))
    (path / "shards" / "p00009-v0000-0002").mkdir()  # not committed, so not there
    return path


@pytest.fixture(scope="module")
def shards(path):
    reader = CacheReader.open(path)
    return [reader.read_shard(entry) for entry in reader.entries]


def position_rows(shards) -> list[tuple]:
    """Each answered position's own columns, with its view and its row there, in stored order."""
    rows = []
    for shard in shards:
        for stored in shard.views:
            pair, targets = shard.examples[stored.example], stored.targets
            spans = [
                (int(c), number, *pair.chunks_C4[c, :2].tolist())
                for c, number in zip(targets.chunk_C, targets.pass_C.tolist(), strict=True)
            ]
            positions = [(c, n, t) for c, n, t0, t1 in spans for t in range(t0, t1)]
            for row, (chunk, number, position) in enumerate(positions):
                place = {
                    "shard": shard.name,
                    "record_id": pair.record_id,
                    "view": stored.corruption.view,
                    "time": stored.corruption.time,
                    "example": stored.example,
                    "chunk": chunk,
                    "pass": number,
                    "teacher_position": position,
                }
                rows.append((place, stored, int(pair.teacher_ids_T[position]), row))
    return rows


def top_k_rows(shards) -> pl.DataFrame:
    """The table that scan_top_k stands for, one Python row at a time."""
    rows = []
    for place, stored, gold, row in position_rows(shards):
        tokens = stored.targets.tokens
        for rank, token_id in enumerate(tokens.ids_MK[row].tolist()):
            logit = tokens.logits_MK[row, rank].item()
            rows.append(
                {
                    **place,
                    "rank": rank,
                    "token_id": token_id,
                    "token": TEXTS[token_id],
                    "logit": logit,
                    "probability": math.exp(logit - tokens.logsumexp_MJ[row, 0].item()),
                    "is_gold": token_id == gold,
                }
            )
    return pl.DataFrame(rows, schema=TOP_K)


def scalar_rows(shards) -> pl.DataFrame:
    """The table that scan_positions stands for."""
    rows = [
        {
            **place,
            "token_id": gold,
            "token": TEXTS[gold],
            "gold_logp": stored.targets.tokens.gold_logp_M[row].item(),
            "logsumexp_1.0": stored.targets.tokens.logsumexp_MJ[row, 0].item(),
            "logsumexp_2.0": stored.targets.tokens.logsumexp_MJ[row, 1].item(),
        }
        for place, stored, gold, row in position_rows(shards)
    ]
    floats = {name: pl.Float32() for name in ("gold_logp", "logsumexp_1.0", "logsumexp_2.0")}
    schema = [*list(TOP_K.items())[:8], ("token_id", pl.Int32()), ("token", pl.String())]
    return pl.DataFrame(rows, schema=pl.Schema({**dict(schema), **floats}))


def test_scans_of_parquet_show_what_the_shards_hold(path, shards):
    examples = scan_examples(path).collect()
    assert examples["record_id"].to_list() == [p.record_id for s in shards for p in s.examples]
    assert examples["teacher_ids"].to_list() == [
        p.teacher_ids_T.tolist() for s in shards for p in s.examples
    ]
    assert [[list(c.values()) for c in chunks] for chunks in examples["chunks"].to_list()] == [
        p.chunks_C4.tolist() for s in shards for p in s.examples
    ]
    views = scan_views(path).collect()
    stored = [(s, v) for s in shards for v in s.views]
    assert views["shard"].to_list() == [s.name for s, _ in stored]
    assert views["time"].to_list() == [v.corruption.time for _, v in stored]
    assert views["is_masked"].to_list() == [v.corruption.is_masked_S.tolist() for _, v in stored]
    chunks = scan_chunks(path).collect()
    assert chunks["logp"].to_list() == [x for _, v in stored for x in v.targets.logp_C.tolist()]
    assert chunks["chunk"].to_list() == [x for _, v in stored for x in v.targets.chunk_C.tolist()]
    of_first = chunks.filter(pl.col("shard") == shards[0].name)
    lengths = of_first["t1"] - of_first["t0"]
    assert of_first["token_row"].to_list() == (lengths.cum_sum() - lengths).to_list()


def test_chunks_carry_their_text_on_demand(path):
    plain, told = scan_chunks(path).collect(), scan_chunks(path, with_text=True).collect()
    assert_frame_equal(told.drop("text"), plain)
    ids = {
        (row["shard"], row["example"]): row["teacher_ids"]
        for row in scan_examples(path).collect().iter_rows(named=True)
    }
    for row in told.iter_rows(named=True):
        span = ids[row["shard"], row["example"]][row["t0"] : row["t1"]]
        assert row["text"] == "".join(TEXTS[token_id] for token_id in span)


def test_token_texts_need_no_tokenizer(path):
    teacher = token_texts(path, "teacher").collect()
    assert dict(zip(teacher["id"], teacher["text"], strict=True)) == TEXTS
    assert teacher["bytes"][7] == b"\xff"
    assert token_texts(path, "student").collect()["bytes"][65] == b"A"


def test_the_scan_of_the_top_k_is_the_table_written_out(path, shards):
    expected = top_k_rows(shards)
    assert len(expected) == sum(3 * e.counts.num_token_rows for e in CacheReader.open(path).entries)
    assert_frame_equal(scan_top_k(path).collect(), expected, rel_tol=1e-12)
    assert_frame_equal(scan_top_k(path).collect(engine="streaming"), expected, rel_tol=1e-12)


QUERIES = {
    "one_shard": lambda f: f.filter(pl.col("shard") == "p00001-v0000-0002"),
    "one_shard_and_a_rank": lambda f: f.filter(
        (pl.col("shard") == "p00001-v0000-0002") & (pl.col("rank") < 2)
    ),
    "late_views_and_gold": lambda f: f.filter(pl.col("view") >= 2, pl.col("is_gold")),
    "view_or_rank": lambda f: f.filter((pl.col("view") == 3) | (pl.col("rank") == 0)),
    "not_null": lambda f: f.filter(pl.col("token").is_not_null() & (pl.col("chunk") == 0)),
    "token_then_position": lambda f: f.filter(pl.col("token") == "<5>").select("teacher_position"),
    "record_id": lambda f: f.filter(pl.col("record_id").is_in(["p0/1é"])).select("rank", "logit"),
    "token_and_shard": lambda f: f.select("token", "shard"),
    "time_alone": lambda f: f.select("time"),
    "length": lambda f: f.select(pl.len()),
    "head": lambda f: f.head(7),
    "slice": lambda f: f.slice(5, 50),
    "filter_then_head": lambda f: f.filter(pl.col("rank") == 1).head(4),
    "head_then_filter": lambda f: f.head(20).filter(pl.col("rank") == 1),
    "filter_head_filter": lambda f: (
        f.filter(pl.col("rank") == 1).head(40).filter(pl.col("view") == 1)
    ),
    "no_position": lambda f: f.filter(pl.col("teacher_position") == 10**6),
    "maximum": lambda f: f.filter(pl.col("rank") == pl.col("rank").max()),
    "sum_by_view": lambda f: f.group_by("view").agg(pl.col("probability").sum()).sort("view"),
    "negation": lambda f: f.filter(pl.col("is_gold").not_()).select(pl.col("logit").max()),
}


@pytest.mark.parametrize("name", QUERIES)
def test_what_is_pushed_down_changes_no_result(path, shards, name):
    query = QUERIES[name]
    expected = query(top_k_rows(shards).lazy()).collect()
    assert_frame_equal(query(scan_top_k(path)).collect(), expected, rel_tol=1e-9)
    assert_frame_equal(query(scan_top_k(path)).collect(engine="streaming"), expected, rel_tol=1e-9)


POSITION_QUERIES = {
    "one_shard": lambda f: f.filter(pl.col("shard") == "p00001-v0000-0002"),
    "unlikely": lambda f: f.filter(pl.col("gold_logp") < 0, pl.col("view") > 0),
    "one_pass": lambda f: f.filter(pl.col("pass") == 1).select("token", "logsumexp_2.0"),
    "likelihoods_alone": lambda f: f.select("gold_logp"),
    "length": lambda f: f.select(pl.len()),
    "head_then_filter": lambda f: f.head(20).filter(pl.col("pass") == 0),
    "filter_then_head": lambda f: f.filter(pl.col("token_id") < 150).head(4),
    "by_view": lambda f: f.group_by("view").agg(pl.col("logsumexp_1.0").max()).sort("view"),
}


def test_the_scan_of_positions_is_the_table_written_out(path, shards):
    expected = scalar_rows(shards)
    assert len(expected) == sum(e.counts.num_token_rows for e in CacheReader.open(path).entries)
    assert any(e.counts.num_joint_rows for e in CacheReader.open(path).entries)
    assert_frame_equal(scan_positions(path).collect(), expected, check_exact=True)
    assert_frame_equal(scan_positions(path).collect(engine="streaming"), expected)


@pytest.mark.parametrize("name", POSITION_QUERIES)
def test_push_down_changes_no_result_of_positions(path, shards, name):
    query = POSITION_QUERIES[name]
    expected = query(scalar_rows(shards).lazy()).collect()
    assert_frame_equal(query(scan_positions(path)).collect(), expected)


def files_read(monkeypatch, query) -> set[str]:
    seen: set[str] = set()
    real = CacheReader.read_files

    def noted(self, entry, files):
        listed = list(files)
        seen.update(file.path for file in listed)
        return real(self, entry, listed)

    with monkeypatch.context() as patch:
        patch.setattr(CacheReader, "read_files", noted)
        query.collect()
    return seen


def test_only_the_files_that_an_answer_needs_are_read(path, monkeypatch):
    scan = scan_top_k(path)
    wanted = (pl.col("shard") == "p00001-v0000-0002") & (pl.col("rank") < 2)
    assert {name.split("/")[1] for name in files_read(monkeypatch, scan.filter(wanted))} == {
        "p00001-v0000-0002"
    }
    late = files_read(monkeypatch, scan.filter(pl.col("view") == 3))
    assert {name.split("/")[1] for name in late} == {"p00000-v0002-0004", "p00001-v0002-0004"}
    nowhere = files_read(monkeypatch, scan.filter(pl.col("teacher_position") == 10**6))
    assert not [name for name in nowhere if "tokens.zarr" in name]
    positions = files_read(monkeypatch, scan.select("record_id", "rank"))
    assert not [name for name in positions if "tokens.zarr" in name]
    tokens = files_read(monkeypatch, scan.select("token"))
    assert {name.split("tokens.zarr/")[1].split("/")[0] for name in tokens if "zarr" in name} == {
        "ids_low"
    }
    first = files_read(monkeypatch, scan.head(1))
    assert {name.split("/")[1] for name in first} == {"p00000-v0000-0002"}


def arrays_of(files: set[str]) -> set[str]:
    return {name.split("tokens.zarr/")[1].split("/")[0] for name in files if "tokens.zarr" in name}


def test_positions_read_the_arrays_of_their_columns_alone(path, monkeypatch):
    scan = scan_positions(path)
    for query, arrays in (
        (scan.select("record_id", "pass"), set()),
        (scan.select("token_id", "token"), set()),
        (scan.select("gold_logp"), {"gold_logp"}),
        (scan.select("logsumexp_2.0"), {"logsumexp"}),
        (scan.filter(pl.col("logsumexp_1.0") > 0).select("gold_logp"), {"gold_logp", "logsumexp"}),
        (scan.filter(pl.col("teacher_position") == 10**6), set()),
    ):
        assert arrays_of(files_read(monkeypatch, query)) == arrays
    one = files_read(monkeypatch, scan.filter(pl.col("shard") == "p00001-v0000-0002"))
    assert {name.split("/")[1] for name in one} == {"p00001-v0000-0002"}


@pytest.fixture(scope="module", params=[0, 4])
def sketches(request, make_recipe, tmp_path_factory):
    """A real cache of sketches, with a top k and without."""
    tail = {"type": "sketch", "step": 0.05, "calibration_records": 6}
    targets = {"type": "tokens", "k": request.param, "tail": tail}
    folder = tmp_path_factory.mktemp("sketches")
    return run_teacher_cache(make_recipe("b", folder, targets=targets)).address


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distributions_are_what_stage_2_expands(sketches, temperature):
    reader = CacheReader.open(sketches)
    basis = reader.read_basis()
    decoder = SketchDecoder.of(basis, torch.device("cpu"))
    shards = [reader.read_shard(entry, basis.coder) for entry in reader.entries]
    found = scan_distributions(sketches, temperature=temperature, likeliest=None).collect()
    places = position_rows(shards)
    assert len(found) == len(places) * reader.identity.kept.vocab_size
    column = 0 if temperature == 1.0 else 1
    blocks = found.iter_slices(reader.identity.kept.vocab_size)
    for (place, stored, gold, row), block in zip(places, blocks, strict=True):
        tokens = stored.targets.tokens.rows(row, row + 1)
        gold_logit = tokens.gold_logp_M + tokens.logsumexp_MJ[:, 0]
        logits_MV = expand_sketch(
            decoder,
            torch.from_numpy(tokens.sketch_MR),
            torch.from_numpy(tokens.logsumexp_MJ[:, column]),
            torch.tensor([gold]),
            torch.from_numpy(gold_logit),
            temperature=temperature,
        )
        shares_V = (logits_MV[0] / temperature - tokens.logsumexp_MJ[0, column].item()).exp()
        assert block.row(0, named=True).items() >= place.items()
        ids = torch.from_numpy(block["token_id"].to_numpy().copy()).long()
        torch.testing.assert_close(
            torch.from_numpy(block["probability"].to_numpy().copy()).float(),
            shares_V[ids],
            rtol=1e-4,
            atol=1e-7,
        )
        assert block["probability"].is_sorted(descending=True)
        assert block["token_id"].n_unique() == len(block)
        assert block.filter("is_gold")["token_id"].to_list() == [gold]


def test_the_likeliest_and_those_above_a_share_are_parts_of_the_whole(sketches):
    whole = scan_distributions(sketches, temperature=2.0, likeliest=None).collect()
    assert whole.schema == DISTRIBUTIONS
    some = scan_distributions(sketches, temperature=2.0, likeliest=5).collect()
    assert_frame_equal(some, whole.filter(pl.col("rank") < 5))
    share = whole["probability"].sort()[-500]
    most = scan_distributions(sketches, temperature=2.0, likeliest=None, above=share).collect()
    assert_frame_equal(most, whole.filter(pl.col("probability") >= share))
    assert len(scan_distributions(sketches).head(3).collect()) == 3


def test_a_distribution_reads_one_shard_and_only_where_there_are_positions(sketches, monkeypatch):
    scan = scan_distributions(sketches)
    shard, *_ = [entry.shard for entry in CacheReader.open(sketches).entries]
    read = files_read(monkeypatch, scan.filter(pl.col("shard") == shard, pl.col("rank") == 0))
    assert {name.split("/")[1] for name in read} == {shard}
    assert arrays_of(read) <= {"sketch", "logsumexp", "gold_logp"}
    nowhere = files_read(monkeypatch, scan.filter(pl.col("record_id") == "nobody"))
    assert arrays_of(nowhere) == set()


def test_a_damaged_array_is_found_by_a_scan(path, tmp_path):
    copy = tmp_path / "cache"
    shutil.copytree(path, copy)
    file = next(copy.glob("shards/*/tokens.zarr/logsumexp/c/0/0"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheCorruptError, match=r"tokens\.zarr/logsumexp"):
        scan_positions(copy).select("logsumexp_1.0").collect()
    assert len(scan_positions(copy).select("gold_logp").collect()), "it is not needed here"


def test_what_a_cache_does_not_keep_is_said(path, tmp_path, sketches):
    with pytest.raises(CacheMissingError, match="expected sketches, got a cache without them"):
        scan_distributions(path)
    with pytest.raises(CacheMissingError, match="expected one of the cached temperatures"):
        scan_distributions(sketches, temperature=3.0)
    if not CacheReader.open(sketches).identity.kept.top_k:
        with pytest.raises(CacheMissingError, match="look at scan_distributions"):
            scan_top_k(sketches)
    CacheWriter.open(tmp_path, identity_of(top_k=0), LAYOUT, VOCABULARIES).close()
    with pytest.raises(CacheMissingError, match="got a cache with chunk likelihoods alone"):
        scan_positions(tmp_path)


def test_conditions_joined_by_and_come_apart():
    a, b, c = pl.col("a") == 1, pl.col("b") < pl.col("a"), pl.col("c").is_null()
    assert [part.meta.root_names() for part in conjuncts(a & b & (c | a))] == [
        ["a"],
        ["b", "a"],
        ["c", "a"],
    ]
    assert len(conjuncts(a | b)) == 1
    assert len(conjuncts(pl.col("a"))) == 1


def test_probabilities_are_null_where_the_temperature_1_was_not_stored(tmp_path):
    kept = IDENTITY.kept.model_copy(update={"temperatures": (2.0,)})
    identity = identity_of(kept=kept)
    with CacheWriter.open(tmp_path, identity, LAYOUT, VOCABULARIES) as writer:
        writer.commit(content_of(np.random.default_rng(0), identity))
    frame = scan_top_k(tmp_path).collect()
    assert len(frame)
    assert frame["probability"].is_null().all()
    assert frame["logit"].is_not_null().all()


def test_an_empty_cache_gives_empty_tables(tmp_path):
    CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES).close()
    for scan in (scan_examples, scan_views, scan_chunks, scan_top_k, scan_positions):
        assert len(scan(tmp_path).collect()) == 0
    assert "text" in scan_chunks(tmp_path, with_text=True).collect().columns


def test_an_empty_table_has_the_columns_of_a_full_one(tmp_path, path):
    CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES).close()
    for scan in (scan_examples, scan_views, scan_chunks):
        assert scan(tmp_path).collect_schema() == scan(path).collect_schema()


def test_a_cache_of_chunk_likelihoods_alone_has_no_top_k_to_look_at(tmp_path):
    CacheWriter.open(tmp_path, identity_of(top_k=0), LAYOUT, VOCABULARIES).close()
    with pytest.raises(CacheMissingError, match="got a cache without a top k; look at scan_chunks"):
        scan_top_k(tmp_path)
