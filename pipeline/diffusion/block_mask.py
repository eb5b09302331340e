"""The attention of block diffusion over two halves of a sequence, one noised and one clean.

Axes: B row, S position in a half, K place in a row (both halves), as a query Q.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, no_type_check

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Who may see whom in three numbers a place: its own group, and groups first to end (not in).

    Groups are the clean blocks, counted along the row, then the noised ones. Each padded place is a
    group of its own, below 0: nobody else sees it, and a query without a key would give NaN.
    """

    group_BK: Int[Tensor, "B K"]
    first_BK: Int[Tensor, "B K"]
    end_BK: Int[Tensor, "B K"]

    def dense(self) -> Bool[Tensor, "B 1 Q K"]:
        """True = visible, for every pair."""
        group, first, end = (x[:, :, None] for x in (self.group_BK, self.first_BK, self.end_BK))
        return sees(group, first, end, self.group_BK[:, None])[:, None]

    def extended(self, num_places: int) -> "Sight":
        """The same rows with padding after them."""
        new = num_places - self.group_BK.shape[1]
        assert new >= 0, f"no {num_places} places: {-new} more are there already"
        group_BK = functional.pad(self.group_BK, (0, new))
        is_new_K = torch.arange(num_places, device=group_BK.device) >= num_places - new
        return Sight(
            group_BK=torch.where(is_new_K, _alone(num_places, group_BK.device), group_BK),
            first_BK=functional.pad(self.first_BK, (0, new)),
            end_BK=functional.pad(self.end_BK, (0, new)),
        )


@no_type_check  # flex attention compiles it, and shape checks would be compiled with it
def _sees(group, first, end, key_group):
    return (key_group == group) | ((key_group >= first) & (key_group < end))


sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = cast("Any", _sees)
"""Whether a query of this group, from this first to this end, sees a key of that group."""


def block_sight(
    example_BS: Int[Tensor, "B S"], block_size: int, *, clean_first: bool = False
) -> Sight:
    """Block diffusion inside each example of a row, over [x_t, x_0] (or [x_0, x_t]).

    Examples follow one another, -1 is padding. Blocks count from each example's start, and no
    example sees another.
    """
    num_tokens = example_BS.shape[1]
    position_BS = position_in_example(example_BS)
    block_BS = (position_BS % block_size == 0).cumsum(1) - 1
    first_BS = block_BS - position_BS // block_size
    halves = (block_BS, block_BS + num_tokens) if clean_first else (block_BS + num_tokens, block_BS)
    is_padding_BK = (example_BS < 0).repeat(1, 2)
    alone_K = _alone(2 * num_tokens, example_BS.device)
    return Sight(
        group_BK=torch.where(is_padding_BK, alone_K, torch.cat(halves, 1).int()),
        first_BK=first_BS.repeat(1, 2).masked_fill(is_padding_BK, 0).int(),
        end_BK=block_BS.repeat(1, 2).masked_fill(is_padding_BK, 0).int(),
    )


def full_sight(is_real_BK: Bool[Tensor, "B K"]) -> Sight:
    """Every token sees every token, and none sees padding."""
    alone_K = _alone(is_real_BK.shape[1], is_real_BK.device)
    group_BK = torch.where(is_real_BK, 0, alone_K)
    nothing_BK = torch.zeros_like(group_BK)
    return Sight(group_BK=group_BK, first_BK=nothing_BK, end_BK=nothing_BK)


def position_in_example(example_BS: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """How many tokens of its example (or of a stretch of padding) stand before each token."""
    place_S = torch.arange(example_BS.shape[1], device=example_BS.device)
    is_first_BS = functional.pad(example_BS[:, 1:] != example_BS[:, :-1], (1, 0), value=True)
    return place_S - torch.where(is_first_BS, place_S, 0).cummax(1).values


def _alone(num_places: int, device: torch.device) -> Int[Tensor, " K"]:
    return -1 - torch.arange(num_places, dtype=torch.int32, device=device)
