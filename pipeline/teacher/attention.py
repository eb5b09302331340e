"""Who may see whom in a teacher's pass, in the form that its family's `forward` takes.

Axes: B pass, T teacher position, Q query, K key.
"""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from pipeline.diffusion.block_mask import as_attention_mask, block_diffusion_mask, hide_padding
from pipeline.teacher.families import Family


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


def mask_argument(
    family: Family,
    is_real_BT: Bool[Tensor, "B T"],
    block_size: int | None,
    *,
    implementation: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The `attention_mask` of a forward call, by name; nothing where there is nothing to hide."""
    if family.mask_form == "padding":
        return {} if bool(is_real_BT.all()) else {"attention_mask": is_real_BT.long()}
    visible = visible_tokens(is_real_BT, block_size)
    if family.mask_form == "boolean":
        return {"attention_mask": visible}
    mask = as_attention_mask(
        visible,
        implementation="eager" if family.mask_form == "additive" else implementation,
        dtype=dtype,
    )
    if family.mask_form == "by_layer_type":
        return {"attention_mask": {"full_attention": mask, "sliding_attention": mask}}
    return {"attention_mask": mask}
