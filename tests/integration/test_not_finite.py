"""A record that the teacher has no finite answer for is left out, told of, and not fatal."""

import json
import math

import pytest
import torch
from tiny import VOCAB, assert_same, files_of, lines, write_lines
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.cache.inspect import scan_views
from pipeline.cache.reader import CacheReader
from pipeline.cache.verify import verify_cache
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import TeacherError

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "tie_word_embeddings": False,  # else a NaN embedding is a NaN logit of every row
    "initializer_range": 0.2,
}
BAD = 6  # a record of the second of three parts


@pytest.fixture(scope="module")
def teachers(tiny, tmp_path_factory):
    """One teacher twice: sound, and with NaN for a token that stands in one record's prompt."""
    folder = tmp_path_factory.mktemp("teachers")
    tokenizer = tiny.tokenizers["teacher-b"]
    tokens = [set(tokenizer.hf(one["messages"][0]["content"]).input_ids) for one in lines()]
    everything = [set(tokenizer.hf(json.dumps(one)).input_ids) for one in lines()]
    others = set().union(*(ids for i, ids in enumerate(everything) if i != BAD))
    token = min(tokens[BAD] - others - set().union(*tokens[:BAD], *tokens[BAD + 1 :]))
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB["teacher-b"], **MODEL))
    for name, value in (("sound", None), ("bad", math.nan)):
        if value is not None:
            with torch.no_grad():
                model.get_input_embeddings().weight[token] = value
        model.save_pretrained(folder / name)
        tokenizer.hf.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def recipes(teachers, make_recipe):
    """`recipes(name, folder)`: pipeline B, two of its views in a shard of at most five records."""

    def make(name, folder, **more):
        return make_recipe("b", folder, **{"teacher.model": str(teachers / name)}, **more)

    return make


def test_a_poisoned_record_is_left_out_of_its_shard_and_of_nothing_else(recipes, tiny, tmp_path):
    sound, bad = (recipes(name, tmp_path / name) for name in ("sound", "bad"))
    run_teacher_cache(sound)
    summary = run_teacher_cache(bad)
    assert summary.is_complete
    assert summary.counts.skips == {"teacher_not_finite": 1}
    assert summary.counts.num_records == tiny.num_records
    assert summary.counts.num_examples == tiny.num_records - 1

    readers = [CacheReader.open(tmp_path / name / "cache") for name in ("sound", "bad")]
    whole, partial = ([reader.read_shard(e) for e in reader.entries] for reader in readers)
    for i in (0, 2):  # other parts, byte for byte
        names = [f"shards/p0000{i}", f"ledger/p0000{i}"]
        got, want = (
            {path: data for path, data in files_of(tmp_path / name / "cache").items()
             if path.startswith(tuple(names))}
            for name in ("bad", "sound")
        )  # fmt: skip
        assert got == want
    # in its own shard the other records' answers, bit for bit
    (skip,) = partial[1].skips
    assert (skip.reason, skip.record_id) == ("teacher_not_finite", lines()[BAD]["id"])
    assert skip.where == f"{tiny.records}:{BAD + 1}"
    assert "left out of shard p00001-v0000-0002: the teacher's answer at token " in skip.message
    kept = [view for view in whole[1].views if view.example != BAD - 5]
    assert len(partial[1].views) == len(kept) == 8
    for got, want in zip(partial[1].views, kept, strict=True):
        assert partial[1].examples[got.example].record_id == (
            whole[1].examples[want.example].record_id
        )
        assert_same((got.corruption, got.targets), (want.corruption, want.targets))

    assert verify_cache(tmp_path / "bad" / "cache").is_sound
    assert scan_views(tmp_path / "bad" / "cache").collect().height == summary.counts.num_views
    logs = []
    trained = run_student_train(bad, on_log=logs.append, shows_progress=False)
    assert trained.is_complete
    assert all(math.isfinite(entry["loss"]) for entry in logs if "loss" in entry)


def test_a_record_poisoned_in_several_shards_is_told_of_in_each(recipes, tmp_path):
    run_teacher_cache(recipes("bad", tmp_path))
    more = run_teacher_cache(recipes("bad", tmp_path, **{"noise.views": 3}))
    assert (more.shards_made, more.shards_found) == (3, 3)
    assert more.counts.skips == {"teacher_not_finite": 2}
    assert verify_cache(tmp_path / "cache").is_sound


def test_a_shard_without_one_finite_record_stops_the_run(recipes, tiny, tmp_path):
    same = lines()[BAD]
    rows = [*lines()[:BAD], *({**same, "id": f"bad-{i}"} for i in range(4))]
    records = write_lines(tmp_path / "records.jsonl", rows)
    recipe = recipes(
        "bad", tmp_path, **{"records.paths": [str(records)], "cache.records_per_part": 2}
    )
    with pytest.raises(TeacherError, match=r"got none for 2 of 2 records \(the first: record bad-"):
        run_teacher_cache(recipe)
    assert len(CacheReader.open(tmp_path / "cache").entries) == 3  # what came before is kept


def test_a_first_shard_with_more_poison_than_answers_is_a_broken_teacher(recipes, tmp_path):
    same = lines()[BAD]
    rows = [*({**same, "id": f"bad-{i}"} for i in range(3)), *lines()[:2]]
    records = write_lines(tmp_path / "records.jsonl", rows)
    recipe = recipes("bad", tmp_path, **{"records.paths": [str(records)]})
    with pytest.raises(TeacherError, match=r"got none for 3 of 5 records .* in float32; try ano"):
        run_teacher_cache(recipe)
    assert CacheReader.open(tmp_path / "cache", allow_empty=True).entries == ()
    half = write_lines(tmp_path / "half.jsonl", [*rows[:2], *lines()[:2]])
    recipe = recipes(
        "bad", tmp_path / "half", **{"records.paths": [str(half)], "train.output": str(tmp_path)}
    )
    assert run_teacher_cache(recipe).counts.skips == {"teacher_not_finite": 2}
