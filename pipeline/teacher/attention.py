"""Who may see whom in a teacher's pass, in the form that its family's `forward` takes.

Axes: B pass, T teacher position, Q query, K key.
"""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from pipeline.diffusion.block_mask import (
    Sight,
    as_attention_mask,
    block_diffusion_mask,
    block_sight,
    full_sight,
    hide_padding,
)
from pipeline.diffusion.flex import flex_mask
from pipeline.teacher.families import Family
from pipeline.teacher.kernels import PACKED, Kernel


def attention_arguments(
    family: Family,
    is_real_BT: Bool[Tensor, "B T"],
    block_size: int | None,
    *,
    kernel: Kernel,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What a forward call takes to attend so; nothing where there is nothing to hide."""
    if kernel in PACKED:
        return {"attention_mask": None, "packed_lengths": is_real_BT.sum(1).tolist()}
    if family.mask_form == "padding":
        return {} if bool(is_real_BT.all()) else {"attention_mask": is_real_BT.long()}
    if kernel == "flex":
        return {"attention_mask": flex_mask(_sight(is_real_BT, block_size))}
    visible = visible_tokens(is_real_BT, block_size)
    if family.mask_form == "boolean":
        return {"attention_mask": visible}
    mask = as_attention_mask(
        visible,
        implementation="eager" if family.mask_form == "additive" else kernel,
        dtype=dtype,
    )
    if family.mask_form == "by_layer_type":
        return {"attention_mask": {"full_attention": mask, "sliding_attention": mask}}
    return {"attention_mask": mask}


def visible_tokens(
    is_real_BT: Bool[Tensor, "B T"], block_size: int | None
) -> Bool[Tensor, "B 1 Q K"]:
    """Full attention over the noised tokens, or block diffusion over [x_0, x_t]."""
    num_tokens = is_real_BT.shape[1]
    if block_size is None:
        visible = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
    else:
        visible = block_diffusion_mask(num_tokens, block_size, clean_first=True)
        is_real_BT = is_real_BT.repeat(1, 2)
    return hide_padding(visible.to(is_real_BT.device), is_real_BT)


def _sight(is_real_BT: Bool[Tensor, "B T"], block_size: int | None) -> Sight:
    """What real tokens see is that of `visible_tokens`; padding sees itself."""
    if block_size is None:
        return full_sight(is_real_BT)
    return block_sight(torch.where(is_real_BT, 0, -1), block_size, clean_first=True)
