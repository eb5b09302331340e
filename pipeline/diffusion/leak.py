"""Does a model really attend as its regime says? Run on the real model at the start of every stage.

Attention implementations have been seen to ignore a mask, or to read it wrongly, without a word.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# rows that must not move are bit-equal in practice; kernels may still reorder a sum
_STILL = 1e-4
# padding goes through a mixture's experts too, whose sums it reorders in the model's own dtype
_PADDING_UNSEEN = 1e-2

Forward = Callable[[Tensor], Tensor]  # token ids [1, S] -> hidden states [1, S, H] of one half


def block_attention_faults(forward: Forward, ids_S: Tensor, block_size: int) -> list[str]:
    """What is wrong with block-diffusion attention; empty if nothing.

    `forward` maps clean ids to the hidden states of the wholly masked half. A change of a clean
    token of block 1 must leave noised blocks 0 and 1 as they are, and move noised block 2.
    `ids_S` holds three blocks.
    """
    assert len(ids_S) == 3 * block_size, "three blocks"
    moved_S = _moved(forward, ids_S, at=block_size + block_size // 2)
    first_two, third = (
        moved_S[: 2 * block_size].max().item(),
        moved_S[2 * block_size :].max().item(),
    )
    faults: list[str] = []
    if not first_two <= _STILL:  # this way round NaN is a fault
        faults.append(f"noised blocks 0 and 1 see the clean block 1 (moved by {first_two:.2g})")
    if not third > _STILL:
        faults.append(f"noised block 2 does not see the clean block 1 (moved by {third:.2g})")
    return faults


def full_attention_faults(forward: Forward, ids_S: Tensor) -> list[str]:
    """What is wrong with full bidirectional attention: the first row must see the last token."""
    first = _moved(forward, ids_S, at=len(ids_S) - 1)[0].item()
    return [] if first > _STILL else [f"the first row does not see the last token ({first:.2g})"]


def padding_faults(forward: Forward, ids_S: Tensor, num_real: int) -> list[str]:
    """What is wrong with padding: no row of a real token may see what stands after `num_real`."""
    other_S = ids_S.clone()
    other_S[num_real:] = ids_S[: len(ids_S) - num_real]
    moved = _distance(forward, ids_S, other_S)[:num_real].max().item()
    if moved <= _PADDING_UNSEEN:
        return []
    return [f"rows see the padding after them (moved by {moved:.2g})"]


@torch.no_grad()
def _moved(forward: Forward, ids_S: Tensor, *, at: int) -> Tensor:
    """How far each row moves when one token changes, relative to the rows' size."""
    changed_S = ids_S.clone()
    changed_S[at] = ids_S[at - 1] if ids_S[at - 1] != ids_S[at] else (ids_S[at] + 1) % ids_S.max()
    return _distance(forward, ids_S, changed_S)


@torch.no_grad()
def _distance(forward: Forward, ids_S: Tensor, changed_S: Tensor) -> Tensor:
    before_SH, after_SH = forward(ids_S[None])[0].float(), forward(changed_S[None])[0].float()
    moved_S, size_S = _norm(after_SH - before_SH), _norm(before_SH)
    return moved_S / size_S.clamp_min(1e-12)


def _norm(rows_SH: Tensor) -> Tensor:
    return rows_SH.square().sum(-1).sqrt()
