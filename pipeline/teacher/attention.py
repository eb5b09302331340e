"""Who may see whom in a teacher's pass, in the form that its family's `forward` takes.

Axes: B pass, T teacher position, Q query, K key.
"""

from typing import Any, cast, no_type_check

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from pipeline.diffusion.block_mask import as_attention_mask, block_diffusion_mask, hide_padding
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
        return {"attention_mask": _flex_mask(is_real_BT, block_size)}
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


def _flex_mask(is_real_BT: Bool[Tensor, "B T"], block_size: int | None) -> BlockMask:
    """The same as `visible_tokens`, as a rule that skips whole tiles of the scores."""
    num_passes, num_tokens = is_real_BT.shape
    num_real_B = is_real_BT.sum(1)

    @no_type_check  # torch reads the signature, and compiles what it finds
    def may_see(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_at, key_at = query % num_tokens, key % num_tokens
        is_seen = key_at < num_real_B[b]
        if block_size is not None:
            query_block, key_block = query_at // block_size, key_at // block_size
            of_clean = (query < num_tokens) & (key < num_tokens) & (key_block <= query_block)
            earlier = (query >= num_tokens) & (key < num_tokens) & (key_block < query_block)
            own = (query >= num_tokens) & (key >= num_tokens) & (key_block == query_block)
            is_seen = is_seen & (of_clean | earlier | own)
        is_itself = (query == key) & (query_at >= num_real_B[b])  # a padded query needs a key
        return is_seen | is_itself

    length = num_tokens if block_size is None else 2 * num_tokens
    rule = cast("Any", may_see)
    return create_block_mask(rule, num_passes, None, length, length, is_real_BT.device.type)
