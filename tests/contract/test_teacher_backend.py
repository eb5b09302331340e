"""The shipped backends against the contract: dense and mixture of experts, both attentions."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.teacher.transformers_backend import TransformersBackend
from storage_schemas.views import TeacherPass

sys.path.insert(0, str(Path(__file__).parent))
from teacher_backend import CHECKS, Case, name_of

BLOCK = 8


def make_passes(vocab_size: int, mask_id: int) -> list[TeacherPass]:
    """Passes of several lengths, whole blocks all, among them one that answers nothing."""
    rng = np.random.default_rng(0)
    passes = []
    for length, share in ((24, 0.5), (8, 0.9), (40, 0.1), (16, 0.0), (32, 1.0), (16, 0.3)):
        clean_ids_T = rng.integers(2, vocab_size - 8, length).astype(np.int32)
        is_answered_T = rng.random(length) < share
        passes.append(
            TeacherPass(
                clean_ids_T=clean_ids_T,
                noised_ids_T=np.where(is_answered_T, np.int32(mask_id), clean_ids_T),
                is_answered_T=is_answered_T,
                is_answered_C=np.zeros(0, np.bool_),
            )
        )
    return passes


def may_see(query: int, key: int, num_tokens: int) -> bool:
    """Block diffusion over [x_0, x_t], position by position (TIDE section 2)."""
    query_is_clean, key_is_clean = query < num_tokens, key < num_tokens
    query_block, key_block = query % num_tokens // BLOCK, key % num_tokens // BLOCK
    if query_is_clean:
        return key_is_clean and key_block <= query_block
    return key_block < query_block if key_is_clean else key_block == query_block


@torch.no_grad()
def plain_logits(model, one: TeacherPass, *, is_block: bool) -> torch.Tensor:
    """One pass alone, eager attention with an added mask, the head at every position."""
    num_tokens = len(one.clean_ids_T)
    noised, clean = (torch.from_numpy(ids).long() for ids in (one.noised_ids_T, one.clean_ids_T))
    ids = torch.cat([clean, noised]) if is_block else noised
    visible = torch.tensor(
        [
            [not is_block or may_see(q, k, num_tokens) for k in range(len(ids))]
            for q in range(len(ids))
        ]
    )
    mask = torch.zeros(len(ids), len(ids)).masked_fill(~visible, torch.finfo(torch.float32).min)
    position = torch.arange(num_tokens).repeat(len(ids) // num_tokens)
    output = model(
        input_ids=ids[None],
        attention_mask=mask[None, None],
        position_ids=position[None],
        use_cache=False,
    )
    return output.logits[0, -num_tokens:]


@pytest.fixture(scope="module", params=["teacher-a", "teacher-b"])
def name(request):
    return request.param


@pytest.fixture(scope="module", params=["full", "block"])
def case(request, name, tiny) -> Case:
    model, plain = tiny.model(name), tiny.model(name, attention="eager")
    is_block = request.param == "block"

    def make(batch_tokens: int) -> TransformersBackend:
        return TransformersBackend(
            model, block_size=BLOCK if is_block else None, batch_tokens=batch_tokens
        )

    tokenizer = tiny.tokenizers[name]
    return Case(
        make=make,
        oracle=lambda one: plain_logits(plain, one, is_block=is_block),
        passes=make_passes(tokenizer.vocab_size, tokenizer.mask_id),
    )


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_the_backend_keeps_the_contract(check, case):
    check(case)
