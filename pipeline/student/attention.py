"""Who may see whom in the student's pass, and at which positions, as its kernel wants it.

Axes: B row, S student position, K place in [x_t, x_0], as a query Q.
"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pipeline.diffusion.block_mask import (
    Sight,
    as_attention_mask,
    block_sight,
    position_in_example,
)
from pipeline.diffusion.flex import FLEX, flex_mask

_KEPT = 16  # lengths in blocks of 32, up to 512 tokens


def attention_arguments(
    shape: tuple[int, int],
    example_BS: Int[Tensor, "B S"] | None,
    block_size: int,
    *,
    implementation: str,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What a forward call over [x_t, x_0] takes to attend block by block in each example.

    Without `example_BS` a row is one example, with padding after whole blocks of it or none. No
    token sees a later block, so padding needs no mask there: one mask serves every row, and every
    batch of that length. The positions of packed examples each start at 0.
    """
    num_rows, num_tokens = shape
    if example_BS is None:
        mask = _mask_of_length(num_tokens, block_size, implementation == FLEX, device)
        position_BS = torch.arange(num_tokens, device=device).expand(num_rows, -1)
    else:
        mask = _mask(block_sight(example_BS, block_size), implementation == FLEX)
        position_BS = position_in_example(example_BS)
    if isinstance(mask, Tensor):
        mask = as_attention_mask(mask, implementation=implementation, dtype=dtype)
    return {"attention_mask": mask, "position_ids": position_BS.repeat(1, 2)}


@lru_cache(maxsize=_KEPT)
def _mask_of_length(
    num_tokens: int, block_size: int, is_flex: bool, device: torch.device
) -> Tensor | BlockMask:
    # what an evaluation makes and keeps must serve training too
    with torch.inference_mode(False):
        one_row = torch.zeros(1, num_tokens, dtype=torch.long, device=device)
        return _mask(block_sight(one_row, block_size), is_flex)


def _mask(sight: Sight, is_flex: bool) -> Tensor | BlockMask:
    return flex_mask(sight) if is_flex else sight.dense()
