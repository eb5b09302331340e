"""What users get wrong: one clear error, or a counted and reported skip; and nothing is lost."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import tiny as tiny_records
from tiny import write_lines

import pipeline.cache.files
from pipeline.cache.reader import CacheReader
from pipeline.config.recipe import load_recipe
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import (
    CacheMissingError,
    CacheWriteError,
    RecipeError,
    TeacherError,
    TidecacheError,
    TokenizerError,
)
from storage_schemas.examples import Message

LONG_PROMPT = "def long():\n    '''" + "words and words " * 60 + "'''\n"


def _messages(prompt: str, response: str, role: str = "user") -> dict:
    turns = [{"role": role, "content": prompt}, {"role": "assistant", "content": response}]
    return {"id": f"{role}-{len(prompt)}-{response[:8]!r}", "messages": turns}


# reason -> a line of the file that is passed over for it
BAD_LINES = {
    "empty_response": json.dumps(_messages("def f():\n", "  \n")),
    "unknown_role": json.dumps(_messages("def f():\n", "    return 1\n", role="narrator")),
    "prompt_too_long": json.dumps(_messages(LONG_PROMPT, "    return 1\n")),
    "broken_json": '{"id": "broken", "messages": [{"role": "user", "cont',
    "wrong_type": json.dumps({"id": "text", "messages": "def f(): return 1"}),
    "missing_field": json.dumps({"id": "nothing"}),
    "duplicate_id": json.dumps(tiny_records.lines()[0]),
    "mask_token_in_text": json.dumps(_messages("def f():\n", "    return '<|mask|>'\n")),
    "no_response": json.dumps({"id": "q", "messages": [{"role": "user", "content": "f"}]}),
    "no_prompt": json.dumps({"id": "a", "messages": [{"role": "assistant", "content": "f"}]}),
}


def good_lines() -> list[str]:
    return [json.dumps(row) for row in tiny_records.lines()]


def examples_of(recipe) -> dict[str, tuple]:
    reader = CacheReader.open(Path(recipe.cache.path))
    return {
        pair.record_id: (pair.student_ids_S.tolist(), pair.chunks_C4.tolist())
        for entry in reader.entries
        for pair in reader.read_shard(entry).examples
    }


def skips_of(recipe):
    reader = CacheReader.open(Path(recipe.cache.path), allow_empty=True)
    return [skip for entry in reader.entries for skip in reader.read_shard(entry).skips]


@pytest.mark.parametrize("kind", ["a", "b"])
def test_bad_records_are_skipped_counted_and_told_and_every_good_one_is_there(
    kind, make_recipe, tmp_path, caplog
):
    good = good_lines()
    mixed = [good[0], *BAD_LINES.values(), *good[1:]]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(mixed) + "\n", encoding="utf-8")
    recipe = make_recipe(
        kind,
        tmp_path / "mixed",
        **{"records.paths": [str(path)], "cache.records_per_part": 100},
    )
    with caplog.at_level(logging.WARNING):
        summary = run_teacher_cache(recipe)
    assert summary.counts.skips == dict.fromkeys(BAD_LINES, 1)
    assert summary.counts.num_records == len(mixed)
    assert summary.counts.num_examples == len(good)
    assert "records skipped" in caplog.text
    assert "'broken_json': 1" in caplog.text

    skips = skips_of(recipe)
    assert [skip.reason for skip in skips] == list(BAD_LINES)
    for number, skip in enumerate(skips, start=2):
        assert skip.where == f"{path}:{number}"
        assert len(skip.message) > 10

    alone = make_recipe(kind, tmp_path / "alone")
    run_teacher_cache(alone)
    assert examples_of(recipe) == examples_of(alone)
    run_student_train(recipe, shows_progress=False)


def test_a_response_without_any_chunk_is_skipped(make_recipe, tmp_path, tiny):
    """One token of the student's is several of the teacher's, which has room for the first only."""
    student, teacher = (tiny.tokenizers[name] for name in ("student", "teacher-a"))
    words = (token.decode() for token in student.vocabulary() if token.isalpha())
    word = next(w for w in words if len(teacher.encode(w)) > 1 == len(student.encode(w)))
    prompt = "def f():\n" + " 1" * 30
    question = [Message(role="user", content=prompt)]
    room = len(teacher.encode(teacher.chat_text(question, add_generation_prompt=True))) + 1

    rows = [*tiny_records.lines(), _messages(prompt, word)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    recipe = make_recipe("a", tmp_path, **{"records.paths": [str(path)], "teacher.length": room})
    summary = run_teacher_cache(recipe)
    assert summary.counts.skips == {"no_chunk": 1}
    assert summary.counts.num_examples == len(rows) - 1
    (skip,) = skips_of(recipe)
    assert skip.record_id == rows[-1]["id"]
    assert "no span of the response is aligned" in skip.message


@pytest.mark.parametrize("kind", ["a", "b"])
def test_a_part_of_bad_records_alone_is_committed_with_its_skips(kind, make_recipe, tmp_path):
    bad = [line for reason, line in BAD_LINES.items() if reason != "duplicate_id"]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join([*bad, *good_lines()]) + "\n", encoding="utf-8")
    recipe = make_recipe(
        kind,
        tmp_path,
        **{"records.paths": [str(path)], "cache.records_per_part": len(bad)},
    )
    summary = run_teacher_cache(recipe)
    assert summary.counts.num_examples == len(good_lines())
    assert CacheReader.open(tmp_path / "cache").entries[0].counts.num_examples == 0
    run_student_train(recipe, shows_progress=False)


def test_records_that_are_all_bad_leave_a_cache_that_says_so_and_nothing_to_train_on(
    make_recipe, tmp_path
):
    path = tmp_path / "bad.jsonl"
    path.write_text(BAD_LINES["broken_json"] + "\n" + BAD_LINES["empty_response"] + "\n")
    recipe = make_recipe("a", tmp_path, **{"records.paths": [str(path)]})
    summary = run_teacher_cache(recipe)
    assert summary.counts.skips == {"broken_json": 1, "empty_response": 1}
    with pytest.raises(CacheMissingError, match="records were all skipped; 'tidecache inspect'"):
        run_student_train(recipe, shows_progress=False)


def _tokenizer_without_mask(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("mask_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special = folder / "special_tokens_map.json"
    if special.exists():
        special.unlink()
    return folder


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_tokenizer_without_a_mask_token_is_refused_before_any_work(
    side, make_recipe, tmp_path, tiny
):
    source = tiny.folder / ("student" if side == "student" else "teacher-a")
    model = _tokenizer_without_mask(source, tmp_path / "maskless")
    recipe = make_recipe("a", tmp_path, **{f"{side}.model": str(model)})
    with pytest.raises(TokenizerError, match=r"maskless has no mask token.*mask_token") as caught:
        run_teacher_cache(recipe)
    assert isinstance(caught.value, ValueError)
    assert not (tmp_path / "cache").exists()


def test_a_mask_token_can_be_named_and_must_be_in_the_vocabulary(make_recipe, tmp_path, tiny):
    model = _tokenizer_without_mask(tiny.folder / "teacher-a", tmp_path / "maskless")
    named = {"teacher.model": str(model), "teacher.mask_token": "<|blank|>"}
    assert run_teacher_cache(make_recipe("a", tmp_path, **named)).is_complete
    wrong = named | {"teacher.mask_token": "<|nothing|>", "cache.path": str(tmp_path / "other")}
    with pytest.raises(TokenizerError, match=r"'<\|nothing\|>' is not in the vocabulary"):
        run_teacher_cache(make_recipe("a", tmp_path, **wrong))


def test_vocabularies_that_do_not_match_are_refused_in_pipeline_b(make_recipe, tmp_path, tiny):
    recipe = make_recipe(
        "b",
        tmp_path,
        **{"teacher.model": str(tiny.folder / "teacher-a"), "pipeline.vocab": 3000},
    )
    with pytest.raises(TokenizerError, match=r"same first 3000 tokens.*differ, the first is id"):
        run_teacher_cache(recipe)
    larger = make_recipe("b", tmp_path, **{"pipeline.vocab": 5000})
    with pytest.raises(TokenizerError, match=r"at least 5000 shared tokens.*has 4096"):
        run_teacher_cache(larger)
    assert not (tmp_path / "cache").exists()


def test_a_teacher_with_fewer_logits_than_shared_tokens_is_refused(make_recipe, tmp_path, tiny):
    model = tiny.model("teacher-b")
    model.resize_token_embeddings(4000)
    model.save_pretrained(tmp_path / "small")
    tiny.tokenizers["teacher-b"].hf.save_pretrained(tmp_path / "small")
    mask_token = tiny.tokenizers["teacher-b"].hf.convert_ids_to_tokens(100)  # the own is cut off
    teacher = {"teacher.model": str(tmp_path / "small"), "teacher.mask_token": mask_token}
    recipe = make_recipe("b", tmp_path, **teacher)
    with pytest.raises(RecipeError, match=r"at least 4096 logits a position, got 4000"):
        run_teacher_cache(recipe)


@pytest.mark.parametrize("kind", ["a", "b"])
def test_an_unwritable_cache_folder_is_refused(kind, make_recipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    recipe = make_recipe(kind, tmp_path, **{"cache.path": str(tmp_path / "file" / "cache")})
    with pytest.raises(CacheWriteError, match=r"expected a writable folder.*another cache folder"):
        run_teacher_cache(recipe)


def test_a_disk_that_fills_up_loses_no_committed_shard(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe("b", tmp_path)
    write, calls = pipeline.cache.files.write_durably, []

    def fill(path, data):
        calls.append(path)
        if len(calls) == 27:  # within the second shard
            raise OSError(28, "No space left on device")
        write(path, data)

    for module in ("files", "local_store"):
        monkeypatch.setattr(f"pipeline.cache.{module}.write_durably", fill)
    with pytest.raises(CacheWriteError, match="No space left on device; free some room"):
        run_teacher_cache(recipe)
    monkeypatch.undo()
    (entry,) = CacheReader.open(tmp_path / "cache").entries
    assert entry.shard == "p00000-v0000-0002"
    summary = run_teacher_cache(recipe)
    assert (summary.shards_found, summary.shards_made) == (1, 2)


def test_a_cache_folder_that_turned_read_only_is_refused(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe("a", tmp_path)
    run_teacher_cache(recipe)
    more = make_recipe("a", tmp_path, **{"noise.views": 3})

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.cache.local_store.tempfile.mkdtemp", refuse)
    with pytest.raises(CacheWriteError, match=r"expected a writable folder.*Permission denied"):
        run_teacher_cache(more)


def test_a_cache_that_is_not_there_is_refused_with_what_to_do(make_recipe, tmp_path):
    with pytest.raises(CacheMissingError, match="make one with 'tidecache teacher-cache'"):
        run_student_train(make_recipe("a", tmp_path), shows_progress=False)
    assert not (tmp_path / "out").exists()


def test_records_that_are_not_there_or_empty_are_refused(make_recipe, tmp_path):
    missing = make_recipe("a", tmp_path, **{"records.paths": [str(tmp_path / "no.jsonl")]})
    with pytest.raises(TidecacheError, match=r"no\.jsonl"):
        run_teacher_cache(missing)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    empty = make_recipe("a", tmp_path, **{"records.paths": [str(tmp_path / "empty.jsonl")]})
    with pytest.raises(RecipeError, match="expected records, got none"):
        run_teacher_cache(empty)
    assert not (tmp_path / "cache").exists()


def test_a_teacher_without_weights_is_refused_before_the_cache_is_made(make_recipe, tmp_path, tiny):
    folder = shutil.copytree(tiny.folder / "teacher-a", tmp_path / "weightless")
    (folder / "model.safetensors").unlink()
    recipe = make_recipe("a", tmp_path, **{"teacher.model": str(folder)})
    with pytest.raises(TeacherError, match=r"expected config\.json and \*\.safetensors"):
        run_teacher_cache(recipe)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"train.lerning_rate": 1e-3}, "train.lerning_rate: no such setting here"),
        ({"colour": "blue"}, "colour: no such setting here"),
        ({"targets.tail": {"type": "even"}}, "targets.tail: no such setting here"),
        ({"objective.lambda_max": 0.5}, "objective.lambda_max: no such setting here"),
        ({"objective.tidal_against_reverse": True}, "no effect without"),
        ({"objective.tidal": {}}, "TIDAL works against a reverse objective"),
        ({"objective": {"type": "tidal_kl"}}, "compares distributions over tokens"),
        ({"student.length": 100}, "whole blocks of 16, got 100"),
        ({"noise.views": 0}, "noise.views"),
        ({"teacher.attention": {"type": "full", "block_size": 8}}, "teacher.attention.block_size"),
    ],
)
def test_an_unknown_or_ineffective_key_is_refused_by_name(override, message, make_recipe, tmp_path):
    with pytest.raises(RecipeError) as caught:
        make_recipe("a", tmp_path, **override)
    assert message in str(caught.value)


def test_every_mistake_of_a_recipe_is_in_one_error(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[student]\nlenght = 3\n[train]\nbatch_size = "many"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    for part in (str(path), "student.lenght", "student.model: Field required", "train.batch_size"):
        assert part in message
