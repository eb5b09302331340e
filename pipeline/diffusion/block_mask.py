"""The attention of block diffusion over two halves of a sequence, one noised and one clean."""

import torch
from jaxtyping import Bool
from torch import Tensor


def block_diffusion_mask(
    num_tokens: int, block_size: int, *, clean_first: bool = False
) -> Bool[Tensor, "Q K"]:
    """Who may see whom, True = visible, [2n, 2n] over [x_t, x_0] (or [x_0, x_t]).

    With b(i) the block of position i inside its half: a noised query sees noised keys of its own
    block and clean keys of strictly earlier blocks; a clean query sees clean keys of its own and of
    earlier blocks; nothing else. The last block may be shorter.
    """
    if num_tokens < 1 or block_size < 1:
        raise ValueError(
            f"expected at least one token and a positive block size, got {num_tokens}, {block_size}"
        )
    block = torch.arange(num_tokens) // block_size
    is_same, is_earlier = block[:, None] == block[None, :], block[:, None] > block[None, :]
    nothing = torch.zeros_like(is_same)
    noised = (is_same, is_earlier)  # keys: noised, clean
    clean = (nothing, is_same | is_earlier)
    if clean_first:
        return torch.cat([torch.cat(clean[::-1], 1), torch.cat(noised[::-1], 1)], 0)
    return torch.cat([torch.cat(noised, 1), torch.cat(clean, 1)], 0)


def hide_padding(
    visible_QK: Bool[Tensor, "Q K"], is_real_BK: Bool[Tensor, "B K"]
) -> Bool[Tensor, "B 1 Q K"]:
    """The mask of a padded batch: nobody sees padding, except each padded query itself.

    A query that sees nothing gives NaN in a softmax; the diagonal keeps padded rows finite, and no
    real row can see them. Needs Q = K.
    """
    visible_BQK = visible_QK & is_real_BK[:, None, :]
    itself_QK = torch.eye(visible_QK.shape[0], dtype=torch.bool, device=visible_QK.device)
    return (visible_BQK | (itself_QK & ~is_real_BK[:, :, None]))[:, None]


def as_attention_mask(
    visible_B1QK: Bool[Tensor, "B 1 Q K"], *, implementation: str, dtype: torch.dtype
) -> Tensor:
    """The mask in the form that a transformers attention implementation needs.

    SDPA takes booleans. Eager attention ADDS its mask, so that booleans would be silently wrong
    there: it gets 0 and the dtype's lowest number. Others are refused.
    """
    if implementation == "sdpa":
        return visible_B1QK
    if implementation == "eager":
        lowest = torch.finfo(dtype).min
        return torch.zeros_like(visible_B1QK, dtype=dtype).masked_fill(~visible_B1QK, lowest)
    raise ValueError(
        f"expected attention 'sdpa' or 'eager' for a ready-made mask, got {implementation!r}"
    )
