"""The stored masks: independent, incomplete chunks and all, the same for everyone."""

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.corpus import ASSETS
from pipeline.diffusion.corrupt import corrupt, draw_mask
from pipeline.evaluate.masks import LEVELS, HeldOut, HeldOutRecord, draw_held_out
from pipeline.text.pair import make_pair
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import CacheCorruptError, CacheMissingError, RecipeError
from storage_schemas.examples import Message, Record

_BODY = (
    "    total = 0\n    for value in values:\n        total += value * value\n    return total\n"
)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(str(ASSETS / "tokenizer-student"))


def _record(name: str, response: str = _BODY) -> Record:
    prompt = f'def {name}(values):\n    """The sum of squares."""'
    messages = (
        Message(role="user", content=prompt),
        Message(role="assistant", content=response),
    )
    return Record(id=name, messages=messages, where=f"{name}.py:1")


def _draw(tokenizer: ChatTokenizer, *names: str, seed: int = 0, length: int = 256) -> HeldOut:
    records = [_record(name) for name in names]
    held_out, skips = draw_held_out(records, tokenizer, length=length, block_size=16, seed=seed)
    assert skips == ()
    return held_out


def test_a_record_is_read_as_in_training(tokenizer: ChatTokenizer):
    (ours,) = _draw(tokenizer, "f").records
    pair = make_pair(
        _record("f"),
        tokenizer,
        ChatTokenizer.load(str(ASSETS / "tokenizer-teacher-a")),
        student_length=256,
        teacher_length=256,
        block_size=16,
        teacher_block_size=None,
        is_shared_vocab=False,
    )
    np.testing.assert_array_equal(ours.student_ids_S, pair.student_ids_S)
    np.testing.assert_array_equal(ours.is_target_S, pair.is_target_S)


def test_content_is_the_response_and_its_end_of_turn(tokenizer: ChatTokenizer):
    (record,) = _draw(tokenizer, "f").records
    text = b"".join(
        tokenizer.token_bytes(i) for i in record.student_ids_S[record.is_content_S].tolist()
    )
    assert text.decode() == _BODY + "<|im_end|>"
    rest = record.student_ids_S[record.is_target_S & ~record.is_content_S].tolist()
    assert [tokenizer.token_bytes(i) for i in rest[:1]] == [b"\n"]
    assert set(rest[1:]) == {tokenizer.eos_id}


def test_a_response_that_is_cut_off_has_no_end_of_turn(tokenizer: ChatTokenizer):
    (record,) = _draw(tokenizer, "f", length=48).records
    assert len(record.student_ids_S) == 48
    assert tokenizer.token_bytes(int(record.student_ids_S[-1])) not in (b"<|im_end|>", b"")
    np.testing.assert_array_equal(record.is_content_S, record.is_target_S)


def test_each_level_masks_its_share_of_the_targets_and_no_prompt(tokenizer: ChatTokenizer):
    held_out = _draw(tokenizer, *(f"f{i}" for i in range(60)))
    num_targets = sum(int(record.is_target_S.sum()) for record in held_out.records)
    for index, level in enumerate(LEVELS):
        masked = sum(int(record.is_masked_LS[index].sum()) for record in held_out.records)
        tolerance = 4 * math.sqrt(level * (1 - level) / num_targets)  # four standard deviations
        assert abs(masked / num_targets - level) < tolerance
    for record in held_out.records:
        assert not (record.is_masked_LS & ~record.is_target_S).any()


def test_masks_do_not_complete_chunks(tokenizer: ChatTokenizer):
    # Under the teacher's tokenizer most chunks have several student tokens; an independent mask
    # cuts through some of them, a completed one never does.
    teacher = ChatTokenizer.load(str(ASSETS / "tokenizer-teacher-a"))
    num_cut = 0
    for name, ours in zip("abcdefgh", _draw(tokenizer, *"abcdefgh").records, strict=True):
        pair = make_pair(
            _record(name),
            tokenizer,
            teacher,
            student_length=256,
            teacher_length=256,
            block_size=16,
            teacher_block_size=None,
            is_shared_vocab=False,
        )
        for _, _, s0, s1 in pair.chunks_C4.tolist():
            num_cut += sum(len(set(mask[s0:s1].tolist())) == 2 for mask in ours.is_masked_LS)
            assert len(set(corrupt(pair, seed=0, view=0, eps=1e-3).is_masked_S[s0:s1])) == 1
    assert num_cut > 10


def test_masks_depend_on_the_record_alone_and_not_on_company_or_order(tokenizer: ChatTokenizer):
    alone = _draw(tokenizer, "b").records[0]
    among = _draw(tokenizer, "c", "b", "a").records[1]
    np.testing.assert_array_equal(alone.is_masked_LS, among.is_masked_LS)


def test_levels_and_seeds_have_masks_of_their_own(tokenizer: ChatTokenizer):
    record = _draw(tokenizer, "f").records[0]
    other = _draw(tokenizer, "f", seed=1).records[0]
    assert (record.is_masked_LS != other.is_masked_LS).any()
    # With one uniform a position for all levels, a lower level's mask would lie inside a higher's.
    assert (record.is_masked_LS[1] & ~record.is_masked_LS[2]).any()


def test_no_view_of_training_has_the_key_of_a_held_out_mask(tokenizer: ChatTokenizer):
    record = _draw(tokenizer, "f").records[0]
    for index, level in enumerate(LEVELS):
        for view in range(50):
            trained = draw_mask(record.is_target_S, level, seed=0, record_id="f", view=view)
            assert (trained != record.is_masked_LS[index]).any()


def test_a_file_gives_back_the_same_masks_and_the_same_bytes(
    tokenizer: ChatTokenizer, tmp_path: Path
):
    held_out = _draw(tokenizer, "a", "b", "c")
    held_out.save(tmp_path / "one" / "masks.parquet")
    held_out.save(tmp_path / "two.parquet")
    again = HeldOut.load(tmp_path / "two.parquet")
    assert again.fingerprint == held_out.fingerprint
    assert again.levels == held_out.levels
    assert [r.record_id for r in again.records] == ["a", "b", "c"]
    assert (tmp_path / "one" / "masks.parquet").read_bytes() == (
        tmp_path / "two.parquet"
    ).read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_fingerprint_tells_any_change(tokenizer: ChatTokenizer):
    held_out = _draw(tokenizer, "a", "b")
    (first, second) = held_out.records
    flipped = first.is_masked_LS.copy()
    flipped[0, first.is_target_S.argmax()] ^= True
    changed = HeldOutRecord(
        record_id=first.record_id,
        student_ids_S=first.student_ids_S,
        is_target_S=first.is_target_S,
        is_content_S=first.is_content_S,
        is_masked_LS=flipped,
    )
    others = [
        HeldOut(levels=held_out.levels, records=(changed, second)),
        HeldOut(levels=held_out.levels, records=(second, first)),
        HeldOut(levels=(0.1, 0.3, 0.5, 0.7, 0.8), records=held_out.records),
    ]
    assert len({held_out.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_records_that_cannot_serve_are_named(tokenizer: ChatTokenizer):
    records = [_record("good"), _record("empty", "   ")]
    held_out, skips = draw_held_out(records, tokenizer, length=256, block_size=16)
    assert [record.record_id for record in held_out.records] == ["good"]
    assert [(s.record_id, s.reason, s.where) for s in skips] == [
        ("empty", "empty_response", "empty.py:1")
    ]


def test_nothing_usable_is_an_error_that_says_why(tokenizer: ChatTokenizer):
    with pytest.raises(RecipeError, match="got none \\(empty_response\\)"):
        draw_held_out([_record("empty", " ")], tokenizer, length=256, block_size=16)


@pytest.mark.parametrize("levels", [(), (0.0, 0.5), (1.5,)])
def test_impossible_levels_are_refused(tokenizer: ChatTokenizer, levels: tuple[float, ...]):
    with pytest.raises(RecipeError, match="levels in"):
        draw_held_out([_record("f")], tokenizer, length=256, block_size=16, levels=levels)


def test_a_missing_file_and_a_broken_one_are_told_apart(tmp_path: Path):
    with pytest.raises(CacheMissingError, match="held-out masks at"):
        HeldOut.load(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(CacheCorruptError, match="draw the masks anew"):
        HeldOut.load(tmp_path / "broken.parquet")


def test_each_draw_has_masks_of_its_own_and_the_first_has_the_old_ones(tokenizer: ChatTokenizer):
    def masks(draw: int) -> HeldOut:
        drawn, _ = draw_held_out([_record("f")], tokenizer, length=256, block_size=16, draw=draw)
        return drawn

    assert masks(0).fingerprint == _draw(tokenizer, "f").fingerprint
    (record,) = masks(0).records
    old = [
        draw_mask(record.is_target_S, level, seed=0, record_id="f", view=-1 - index)
        for index, level in enumerate(LEVELS)
    ]
    np.testing.assert_array_equal(record.is_masked_LS, np.stack(old))
    assert len({masks(draw).fingerprint for draw in range(3)}) == 3
