"""How drafts are read: whole, each time, or block by block on top of cached clean blocks.

Either way a token sees its own block and the blocks before it, as in training. Axes: A row, S
position, N masked position (flattened), H hidden size, K key.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.diffusion.block_mask import as_attention_mask
from pipeline.generate.draft import Draft
from pipeline.generate.kv_cache import BlockCache
from pipeline.student.forward import attention_implementation, base_model


class Reader(Protocol):
    """Reads the drafts of a batch, in the order in which it was given them at first."""

    def read(self, drafts: Sequence[Draft]) -> tuple[list[Draft], Float[Tensor, "N H"]]:
        """One pass: the drafts whose current block was read, and their masked positions' states."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Only these drafts go on."""
        ...


class PlainReader:
    """Reads every draft from its first token to the end of its current block, each time."""

    def __init__(self, model: PreTrainedModel, block_size: int) -> None:
        self._model = model
        self._block_size = block_size

    def read(self, drafts: Sequence[Draft]) -> tuple[list[Draft], Float[Tensor, "N H"]]:
        """All of them: nothing has to be read beforehand."""
        ids_AS = _first_tokens(drafts, max(draft.stop for draft in drafts), self._model.device)
        hidden_ASH = _forward(
            self._model,
            ids_AS,
            torch.arange(ids_AS.shape[1], device=ids_AS.device).expand_as(ids_AS),
            _block_causal(ids_AS.shape[1], self._block_size, ids_AS.device),
        )
        return list(drafts), _at_masked(hidden_ASH, drafts, [0] * len(drafts))

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing is kept between passes."""


class CachedReader:
    """Reads each draft's current block alone, on top of the cached blocks before it.

    A block that is done is read once more, clean, for the cache to hold: in a pass in which other
    drafts go on with theirs.
    """

    def __init__(self, model: PreTrainedModel, block_size: int, drafts: Sequence[Draft]) -> None:
        self._model = model
        self._block_size = block_size
        self._cache = BlockCache(max(len(draft.ids_S) for draft in drafts))
        self._num_cached = [draft.block for draft in drafts]
        self._read_prompts(drafts)

    def read(self, drafts: Sequence[Draft]) -> tuple[list[Draft], Float[Tensor, "N H"]]:
        """One block of each: its current one, if all before it are cached."""
        hidden_ASH = self._read_blocks(drafts)
        rows = [i for i, draft in enumerate(drafts) if draft.block == self._num_cached[i]]
        self._num_cached = [draft.block for draft in drafts]
        current = [drafts[i] for i in rows]
        if len(rows) < len(drafts):
            hidden_ASH = hidden_ASH[torch.tensor(rows, dtype=torch.long, device=hidden_ASH.device)]
        return current, _at_masked(hidden_ASH, current, [draft.start for draft in current])

    def keep(self, rows: Sequence[int]) -> None:
        """The others' cached blocks are given back."""
        self._num_cached = [self._num_cached[row] for row in rows]
        self._cache.keep_rows(torch.tensor(rows, dtype=torch.long, device=self._model.device))

    def _read_blocks(self, drafts: Sequence[Draft]) -> Float[Tensor, "A S H"]:
        """Of each draft, the block after its cached ones."""
        size, device = self._block_size, self._model.device
        starts = [num_blocks * size for num_blocks in self._num_cached]
        ids = [draft.ids_S[at : at + size] for draft, at in zip(drafts, starts, strict=True)]
        ids_AS = torch.from_numpy(np.stack(ids)).long().to(device)
        start_A1 = torch.tensor(starts, device=device)[:, None]
        position_AS = start_A1 + torch.arange(size, device=device)
        num_seen = max(starts) + size
        self._cache.aim(position_AS, num_seen)
        is_seen_AK = torch.arange(num_seen, device=device) < start_A1 + size
        visible_A1SK = is_seen_AK[:, None, None].expand(-1, 1, size, -1)
        return _forward(self._model, ids_AS, position_AS, visible_A1SK, self._cache)

    def _read_prompts(self, drafts: Sequence[Draft]) -> None:
        """Whole blocks of prompts, in one pass; what stands behind a shorter one is never seen."""
        num_tokens = max(draft.start for draft in drafts)
        if num_tokens == 0:
            return
        ids_AS = _first_tokens(drafts, num_tokens, self._model.device)
        position_AS = torch.arange(num_tokens, device=ids_AS.device).expand_as(ids_AS)
        self._cache.aim(position_AS, num_tokens)
        mask = _block_causal(num_tokens, self._block_size, ids_AS.device)
        _forward(self._model, ids_AS, position_AS, mask, self._cache)


def _forward(
    model: PreTrainedModel,
    ids_AS: Int[Tensor, "A S"],
    position_AS: Int[Tensor, "A S"],
    visible: Bool[Tensor, "_ 1 S K"],
    cache: BlockCache | None = None,
) -> Float[Tensor, "A S H"]:
    output: Any = base_model(model)(
        input_ids=ids_AS,
        position_ids=position_AS,
        attention_mask=as_attention_mask(
            visible, implementation=attention_implementation(model), dtype=model.dtype
        ),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return cast("Tensor", output.last_hidden_state)


def _first_tokens(
    drafts: Sequence[Draft], num_tokens: int, device: torch.device
) -> Int[Tensor, "A S"]:
    """Shorter drafts are filled with their last token: no token sees a later block."""
    rows = [np.pad(d.ids_S[:num_tokens], (0, max(0, num_tokens - len(d.ids_S)))) for d in drafts]
    return torch.from_numpy(np.stack(rows)).long().to(device)


def _block_causal(
    num_tokens: int, block_size: int, device: torch.device
) -> Bool[Tensor, "1 1 S S"]:
    block_S = torch.arange(num_tokens, device=device) // block_size
    return (block_S[:, None] >= block_S)[None, None]


def _at_masked(
    hidden_ASH: Float[Tensor, "A S H"], drafts: Sequence[Draft], starts: Sequence[int]
) -> Float[Tensor, "N H"]:
    """The states of the drafts' masked positions; a draft's row begins at its start."""
    positions = [
        draft.masked_positions() - start for draft, start in zip(drafts, starts, strict=True)
    ]
    row_N = np.repeat(np.arange(len(drafts)), [len(one) for one in positions])
    at_N = np.concatenate([np.zeros(0, dtype=np.int64), *positions])
    device = hidden_ASH.device
    return hidden_ASH[
        torch.from_numpy(row_N).to(device), torch.from_numpy(at_N.astype(np.int64)).to(device)
    ]
