"""Held-out scores: worked by hand, equal to a plain forward pass, whatever the batching."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.diffusion.block_mask import block_diffusion_mask
from pipeline.evaluate.heldout import evaluate_held_out
from pipeline.evaluate.masks import HeldOut, HeldOutRecord

_VOCAB, _MASK, _BLOCK = 5, 4, 4


def _model(vocab_size: int = _VOCAB) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    model = Qwen3ForCausalLM(config)
    for parameter in model.parameters():  # large enough that context matters
        nn.init.normal_(parameter, std=0.7)
    return model


def _deaf_model(logits: list[float]) -> Qwen3ForCausalLM:
    """A model that says the same of every position."""
    model = _model(len(logits))
    model.lm_head = nn.Linear(16, len(logits))
    nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data = torch.tensor(logits)
    return model


def _held_out(*, num_records: int = 6, levels: tuple[float, ...] = (0.3, 0.8)) -> HeldOut:
    rng = np.random.default_rng(0)
    records: list[HeldOutRecord] = []
    for i in range(num_records):
        length = _BLOCK * (2 + i % 3)
        position = np.arange(length)
        is_target = position >= 3
        records.append(
            HeldOutRecord(
                record_id=f"r{i}",
                student_ids_S=rng.integers(0, 4, length, dtype=np.int32),
                is_target_S=is_target,
                is_content_S=is_target & (position < length - 2),
                is_masked_LS=(rng.random((len(levels), length)) < np.array(levels)[:, None])
                & is_target,
            )
        )
    return HeldOut(levels=levels, records=tuple(records))


def test_worked_by_hand():
    # One record 0 | 0 1 2, position 0 the prompt, position 3 (token 2) filling; p = 1/2, 1/4, 1/8.
    # At t = 0.5 all three are masked: content (1 + 2) log 2 over 2 tokens, all 6 log 2 over 3.
    # At t = 0.9 token 1 alone: 2 log 2 over 1. Only token 0 is ever the most likely.
    record = HeldOutRecord(
        record_id="r",
        student_ids_S=np.array([0, 0, 1, 2], dtype=np.int32),
        is_target_S=np.array([False, True, True, True]),
        is_content_S=np.array([False, True, True, False]),
        is_masked_LS=np.array([[False, True, True, True], [False, False, True, False]]),
    )
    held_out = HeldOut(levels=(0.5, 0.9), records=(record,))
    model = _deaf_model([math.log(p) for p in (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16)])
    scores = evaluate_held_out(model, held_out, mask_id=_MASK, block_size=_BLOCK)
    log2 = math.log(2)
    np.testing.assert_allclose(scores.content.nll_L, [1.5 * log2, 2 * log2], rtol=1e-6)
    np.testing.assert_allclose(scores.target.nll_L, [2 * log2, 2 * log2], rtol=1e-6)
    np.testing.assert_allclose(scores.content.accuracy_L, [1 / 2, 0])
    np.testing.assert_allclose(scores.target.accuracy_L, [1 / 3, 0])
    np.testing.assert_array_equal(scores.content.num_masked_L, [2, 1])
    # Bound: (3 log 2 / 0.5 + 2 log 2 / 0.9) / 2 levels / 2 content tokens.
    assert scores.content.nll_bound == pytest.approx((6 + 2 / 0.9) / 4 * log2, rel=1e-6)
    assert scores.target.nll_bound == pytest.approx((12 + 2 / 0.9) / 6 * log2, rel=1e-6)


def test_a_uniform_model_scores_log_vocabulary():
    scores = evaluate_held_out(
        _deaf_model([0.0] * _VOCAB), _held_out(), mask_id=_MASK, block_size=_BLOCK
    )
    np.testing.assert_allclose(scores.content.nll_L, math.log(_VOCAB), rtol=1e-6)
    np.testing.assert_allclose(scores.target.nll_L, math.log(_VOCAB), rtol=1e-6)


def test_scores_equal_a_plain_forward_pass_of_each_view():
    model, held_out = _model().eval(), _held_out()
    scores = evaluate_held_out(model, held_out, mask_id=_MASK, block_size=_BLOCK)
    for r, record in enumerate(held_out.records):
        ids = torch.from_numpy(record.student_ids_S).long()
        for level, mask in enumerate(torch.from_numpy(record.is_masked_LS)):
            noised = torch.where(mask, _MASK, ids)
            with torch.no_grad():
                logits = model(
                    input_ids=torch.cat([noised, ids])[None],
                    attention_mask=block_diffusion_mask(len(ids), _BLOCK)[None, None],
                    position_ids=torch.arange(len(ids)).repeat(2)[None],
                ).logits[0, : len(ids)]
            logp = logits.double().log_softmax(-1)[torch.arange(len(ids)), ids]
            is_right = logits.argmax(-1) == ids
            content = mask & torch.from_numpy(record.is_content_S)
            for tokens, kept in ((scores.target, mask), (scores.content, content)):
                assert tokens.nll_RL[r, level] == pytest.approx(-logp[kept].sum().item(), rel=1e-5)
                assert tokens.num_correct_RL[r, level] == is_right[kept].sum()
                assert tokens.num_masked_RL[r, level] == kept.sum()
        assert scores.content.num_maskable_R[r] == record.is_content_S.sum()
        assert scores.target.num_maskable_R[r] == record.is_target_S.sum()


@pytest.mark.parametrize("batch_tokens", [1, 20, 48, 10_000])
def test_the_batch_size_changes_nothing(batch_tokens: int):
    model, held_out = _model(), _held_out(num_records=9)
    want = evaluate_held_out(model, held_out, mask_id=_MASK, block_size=_BLOCK)
    got = evaluate_held_out(
        model, held_out, mask_id=_MASK, block_size=_BLOCK, batch_tokens=batch_tokens
    )
    np.testing.assert_allclose(got.content.nll_RL, want.content.nll_RL, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got.content.num_correct_RL, want.content.num_correct_RL)


def test_the_order_of_records_changes_nothing_but_the_order():
    model, held_out = _model(), _held_out()
    turned = HeldOut(levels=held_out.levels, records=held_out.records[::-1])
    want = evaluate_held_out(model, held_out, mask_id=_MASK, block_size=_BLOCK)
    got = evaluate_held_out(model, turned, mask_id=_MASK, block_size=_BLOCK)
    assert got.record_ids == want.record_ids[::-1]
    np.testing.assert_allclose(got.target.nll_RL[::-1], want.target.nll_RL, rtol=1e-5, atol=1e-6)


def test_every_model_has_the_fingerprint_of_the_masks():
    held_out = _held_out()
    for model in (_model(), _deaf_model([0.0] * _VOCAB)):
        scores = evaluate_held_out(model, held_out, mask_id=_MASK, block_size=_BLOCK)
        assert scores.fingerprint == held_out.fingerprint


def test_a_model_in_training_is_scored_without_dropout_and_left_in_training():
    model = _model()
    model.config.attention_dropout = 0.5
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    held_out = _held_out()
    scores = [
        evaluate_held_out(model.train(), held_out, mask_id=_MASK, block_size=_BLOCK)
        for _ in range(2)
    ]
    assert model.training
    np.testing.assert_array_equal(scores[0].target.nll_RL, scores[1].target.nll_RL)


def test_progress_counts_views_up_to_all_of_them():
    told: list[tuple[int, int]] = []
    evaluate_held_out(
        _model(),
        _held_out(),
        mask_id=_MASK,
        block_size=_BLOCK,
        batch_tokens=24,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1] == (12, 12)
    assert len(told) > 3


def test_a_level_that_masks_nothing_has_no_mean():
    held_out = _held_out(num_records=2)
    empty = tuple(
        HeldOutRecord(
            record_id=record.record_id,
            student_ids_S=record.student_ids_S,
            is_target_S=record.is_target_S,
            is_content_S=record.is_content_S,
            is_masked_LS=np.zeros_like(record.is_masked_LS),
        )
        for record in held_out.records
    )
    scores = evaluate_held_out(
        _model(),
        HeldOut(levels=held_out.levels, records=empty),
        mask_id=_MASK,
        block_size=_BLOCK,
    )
    assert np.isnan(scores.content.nll_L).all()
    assert scores.content.nll_bound == 0.0
