"""The block-diffusion mask inside real models: SDPA equals eager, and no clean token leaks.

Axes: B example, S student position, N masked position, H hidden size.
"""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipeline.diffusion.block_mask import as_attention_mask, block_diffusion_mask, hide_padding
from pipeline.diffusion.leak import block_attention_faults, full_attention_faults
from pipeline.student.forward import masked_hidden

VOCABULARY, MASK_ID = 32, 31
BLOCK = 4
SAME = 1e-5  # float32, two layers, two orders of summation
MOVED = 1e-3  # a change that is no rounding


def _tiny(kind: str, implementation: str) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    if kind == "dense":
        config = Qwen3Config(**sizes)
        return Qwen3ForCausalLM._from_config(config, attn_implementation=implementation).eval()
    config = Qwen3MoeConfig(**sizes, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
    return Qwen3MoeForCausalLM._from_config(config, attn_implementation=implementation).eval()


KINDS = pytest.mark.parametrize("kind", ["dense", "mixture_of_experts"])
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["sdpa", "eager"])


@torch.no_grad()
def _hidden(model: PreTrainedModel, ids_BK: Tensor, mask: Tensor) -> Tensor:
    return model.get_decoder()(
        input_ids=ids_BK, attention_mask=mask, use_cache=False
    ).last_hidden_state


@torch.no_grad()
def _noised(model: PreTrainedModel, ids_BS: Tensor, is_masked_BS: Tensor | None = None) -> Tensor:
    everything = torch.ones_like(ids_BS, dtype=torch.bool)
    return masked_hidden(
        model,
        ids_BS,
        everything if is_masked_BS is None else is_masked_BS,
        mask_id=MASK_ID,
        block_size=BLOCK,
    )


def _moved_blocks(before_NH: Tensor, after_NH: Tensor) -> list[float]:
    moved_N = (after_NH - before_NH).abs().amax(-1)
    return moved_N.unflatten(0, (3, BLOCK)).amax(-1).tolist()


@KINDS
def test_booleans_under_sdpa_equal_additions_under_eager(kind: str):
    ids_BK = torch.arange(24).reshape(2, 12)
    is_real_BK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2]).repeat(1, 2)
    visible = hide_padding(block_diffusion_mask(6, 2), is_real_BK)
    ours, theirs = (
        _hidden(
            _tiny(kind, implementation),
            ids_BK,
            as_attention_mask(visible, implementation=implementation, dtype=torch.float32),
        )
        for implementation in ("sdpa", "eager")
    )
    assert_close(ours, theirs, atol=SAME, rtol=0)


def test_booleans_under_eager_are_silently_wrong():
    # the trap that `as_attention_mask` is there for: eager ADDS True as 1
    ids_BK = torch.arange(12)[None]
    visible = block_diffusion_mask(6, 2)[None, None]
    model = _tiny("dense", "eager")
    right_mask = as_attention_mask(visible, implementation="eager", dtype=torch.float32)
    assert right_mask.dtype != torch.bool
    difference = _hidden(model, ids_BK, right_mask) - _hidden(model, ids_BK, visible)
    assert difference.abs().max() > MOVED


@KINDS
@IMPLEMENTATIONS
def test_a_clean_token_moves_the_noised_blocks_after_its_own_and_no_other(
    kind: str, implementation: str
):
    model, ids_BS = _tiny(kind, implementation), torch.arange(3 * BLOCK)[None]
    changed_BS = ids_BS.clone()
    changed_BS[0, BLOCK + 1] = 29
    first, second, third = _moved_blocks(_noised(model, ids_BS), _noised(model, changed_BS))
    assert first < SAME
    assert second < SAME
    assert third > MOVED


@KINDS
@IMPLEMENTATIONS
def test_a_masked_token_does_not_see_its_own_answer(kind: str, implementation: str):
    model, ids_BS = _tiny(kind, implementation), torch.arange(3 * BLOCK)[None]
    is_masked_BS = torch.arange(3 * BLOCK)[None] % 2 == 1
    changed_BS = ids_BS.clone()
    changed_BS[0, -1] = 29  # masked, in the last block
    before, after = (_noised(model, ids, is_masked_BS) for ids in (ids_BS, changed_BS))
    assert_close(before, after, atol=SAME, rtol=0)


@KINDS
def test_an_unmasked_token_moves_its_own_noised_block(kind: str):
    model, ids_BS = _tiny(kind, "sdpa"), torch.arange(3 * BLOCK)[None]
    is_masked_BS = torch.arange(3 * BLOCK)[None] % 2 == 1
    changed_BS = ids_BS.clone()
    changed_BS[0, BLOCK] = 29  # shown, in block 1
    moved_N = (
        _noised(model, changed_BS, is_masked_BS) - _noised(model, ids_BS, is_masked_BS)
    ).abs()
    first, second, third = moved_N.amax(-1).unflatten(0, (3, BLOCK // 2)).amax(-1).tolist()
    assert first < SAME
    assert second > MOVED
    assert third > MOVED


@KINDS
@IMPLEMENTATIONS
def test_the_leak_check_passes_the_block_diffusion_forward(kind: str, implementation: str):
    model, ids_S = _tiny(kind, implementation), torch.arange(3 * BLOCK)
    assert block_attention_faults(lambda ids: _noised(model, ids)[None], ids_S, BLOCK) == []


def test_the_leak_check_finds_full_attention_where_blocks_are_expected():
    model, ids_S = _tiny("dense", "sdpa"), torch.arange(3 * BLOCK)
    everyone = torch.ones(1, 1, 6 * BLOCK, 6 * BLOCK, dtype=torch.bool)

    def leaking(ids_BS: Tensor) -> Tensor:
        both = torch.cat([torch.full_like(ids_BS, MASK_ID), ids_BS], 1)
        return _hidden(model, both, everyone)[:, : 3 * BLOCK]

    (fault,) = block_attention_faults(leaking, ids_S, BLOCK)
    assert "blocks 0 and 1 see the clean block 1" in fault


def test_the_leak_check_finds_a_model_that_ignores_what_is_clean():
    ids_S = torch.arange(3 * BLOCK)
    (fault,) = block_attention_faults(lambda ids: torch.ones(*ids.shape, 2), ids_S, BLOCK)
    assert "block 2 does not see the clean block 1" in fault
    (fault,) = full_attention_faults(lambda ids: torch.ones(*ids.shape, 2), ids_S)
    assert "does not see the last token" in fault


def test_the_leak_check_tells_full_from_causal_attention():
    model, ids_S = _tiny("dense", "sdpa"), torch.arange(8)
    full = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert full_attention_faults(lambda ids: _hidden(model, ids, full), ids_S) == []
    assert full_attention_faults(lambda ids: _hidden(model, ids, full.tril()), ids_S)


def test_the_leak_check_takes_nan_for_a_fault():
    ids_S = torch.arange(3 * BLOCK)

    def nothing(ids_BS: Tensor) -> Tensor:
        return torch.full((*ids_BS.shape, 2), torch.nan)

    assert len(block_attention_faults(nothing, ids_S, BLOCK)) == 2
    assert full_attention_faults(nothing, ids_S)
