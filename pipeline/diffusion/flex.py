"""Flex attention in few shapes: every shape costs a compilation, and there may be only so many.

Axes: B row, K place in a row, L place in a row padded to whole tiles, h attention head, d its size.
"""

from functools import cache
from typing import Any, cast, no_type_check

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface

from pipeline.diffusion.block_mask import Sight, sees
from storage_schemas.errors import RecipeError

FLEX = "tidecache_flex_attention"
"""What transformers calls it."""

_TILE = 128  # of the scores: whole tiles are skipped, or read without a mask
_SHAPES = 64


def flex_mask(sight: Sight) -> BlockMask:
    """The mask as a rule that skips whole tiles of the scores, as long as `padded_length` says.

    A sight of one row serves every row of a batch.
    """
    length = padded_length(sight.group_BK.shape[1])
    padded = sight.extended(length)
    num_rows, device = len(padded.group_BK), padded.group_BK.device
    return _mask_maker(device.type)(mask_rule(padded), num_rows, None, length, length, device)


def padded_length(num_places: int) -> int:
    """Whole tiles: 1, 2, 3, 4, 6, 8, 12, 16, ... of them.

    The padding is attention's alone, and of its tiles only those on the diagonal are computed.
    """
    tiles = -(-num_places // _TILE)
    step = 1 << max(0, (tiles - 1).bit_length() - 2)
    return -(-tiles // step) * step * _TILE


def mask_rule(sight: Sight) -> Any:
    """The sight in the form that torch calls a mask_mod."""
    group, first, end = sight.group_BK, sight.first_BK, sight.end_BK
    if len(group) > 1:

        @no_type_check  # torch reads the signature, and compiles what it finds
        def may_see(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return sees(group[b, query], first[b, query], end[b, query], group[b, key])

        return cast("Any", may_see)
    group, first, end = group[0], first[0], end[0]

    @no_type_check
    def may_see_in_any_row(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(group[query], first[query], end[query], group[key])

    return cast("Any", may_see_in_any_row)


def flex_attention(
    module: nn.Module,
    query_BhKd: Tensor,
    key_BhKd: Tensor,
    value_BhKd: Tensor,
    attention_mask: BlockMask,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Each place sees what the mask says; [B, K, h, d], as transformers wants it.

    Under autocast in its dtype: weights in float32 leave queries and keys, which go through norms
    and rotations, in float32 beside values in bfloat16, and flex attention takes one dtype.
    """
    if dropout > 0 or softcap is not None or s_aux is not None:
        raise RecipeError(
            f"expected plain attention for kernel 'flex', got dropout, capped scores or sinks in "
            f"{type(module).__name__}; set kernel = 'sdpa' if it knows them there"
        )
    num_heads, (_b, num_groups, num_places, _d) = query_BhKd.shape[1], key_BhKd.shape
    if num_heads & (num_heads - 1):  # kernels share keys among powers of two alone
        each = num_heads // num_groups
        key_BhKd, value_BhKd = (x.repeat_interleave(each, 1) for x in (key_BhKd, value_BhKd))
    states = (query_BhKd, key_BhKd, value_BhKd)
    device = query_BhKd.device.type
    if torch.is_autocast_enabled(device):
        states = tuple(x.to(torch.get_autocast_dtype(device)) for x in states)
    new = attention_mask.shape[-1] - num_places
    # the layout that states have without padding: another would be another shape to compile
    padded = (
        functional.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, new)).transpose(1, 2) for x in states
    )
    seen_BhLd = _compiled_attention()(*padded, attention_mask, scaling)
    return seen_BhLd[:, :, :num_places].transpose(1, 2).contiguous(), None


@no_type_check
def _attention(query, key, value, mask, scale):
    is_shared = query.shape[1] != key.shape[1]
    return flex.flex_attention(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=is_shared
    )


@cache
def _compiled_attention() -> Any:
    from torch._dynamo import config as compiler  # slow to import

    # Past torch's own limit of 8 shapes it would give way to one that keeps every score.
    settings = cast("Any", compiler)
    settings.recompile_limit = max(settings.recompile_limit, _SHAPES)
    return torch.compile(cast("Any", _attention), dynamic=False)


@cache
def _mask_maker(device_type: str) -> Any:
    # compiled, it makes no mask of all pairs on the way; a CPU has room for one
    make = cast("Any", flex.create_block_mask)
    return torch.compile(make, dynamic=False) if device_type == "cuda" else make


# Its masks come ready-made: transformers passes on those with four axes as they are.
AttentionInterface.register(FLEX, flex_attention)
