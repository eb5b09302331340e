"""The end of a forward pass in a worker: the head at the asked positions, and what is kept of it.

A request names its rows: `PoolingParams.extra_kwargs = {"positions": [...], "gold": [...]}`, the
sequence positions whose hidden states answer, and the true token that each of them predicts.

Axes: N token of a step, M asked row, H hidden size, V vocabulary, W column of the wire.
"""
# pyright: basic, reportMissingImports=false
# (vLLM is an extra, and the checks run without it)

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.pooler.abstract import Pooler

from pipeline.teacher.keep import Keep, RowKeeper, rows_at_once
from pipeline.teacher.vllm_plugin.wire import pack


class RowPooler(Pooler):
    """Kept numbers of the asked rows, one float32 table a request (`wire`).

    `logits_of` is the model's own map from hidden states to logits over the whole vocabulary. With
    tensor parallelism it gathers them on the first rank and answers None on the others, whose
    output vLLM drops; so every rank must call it equally often.
    """

    def __init__(self, logits_of: Callable[[Tensor], Tensor | None], vocab_size: int) -> None:
        super().__init__()
        self._logits_of = logits_of
        self._num_rows = rows_at_once(vocab_size)
        self._keeper: RowKeeper | None = None

    def keep(self, keep: Keep, device: torch.device) -> None:
        """From now on, keep this of each row."""
        self._keeper = RowKeeper.of(keep, device)

    def get_supported_tasks(self) -> set[Any]:
        """The task whose output is a table a request in both of vLLM's model runners."""
        return {"token_classify"}

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        """The tables of the requests that end in this step; None for the others."""
        cursor = pooling_metadata.get_pooling_cursor()
        counts = cursor.num_scheduled_tokens_cpu.tolist()
        ends = cursor.seq_lens_cpu.tolist()
        row_M: list[int] = []
        gold_M: list[int] = []
        num_rows: list[int] = []
        first = 0
        for params, count, end in zip(pooling_metadata.pooling_params, counts, ends, strict=True):
            asked = params.extra_kwargs or {"positions": (), "gold": ()}  # none while vLLM warms up
            self.check_chunk(end - count, end)
            here = [
                (position - (end - count) + first, gold)
                for position, gold in zip(asked["positions"], asked["gold"], strict=True)
                if end - count <= position < end
            ]
            row_M += [row for row, _ in here]
            gold_M += [gold for _, gold in here]
            num_rows.append(len(here))
            first += count
        table_MW = self._table(hidden_states, row_M, gold_M)
        tables: list[Tensor | None] = []
        states = pooling_metadata.pooling_states
        for state, part_MW, is_last in zip(
            states, table_MW.split(num_rows), cursor.get_finished_mask(), strict=True
        ):
            if len(part_MW):  # a step without rows has no columns either
                state.hidden_states_cache.append(part_MW)
            tables.append(torch.cat(state.hidden_states_cache or [part_MW]) if is_last else None)
            if is_last:
                state.clean()
        return tables

    def check_chunk(self, start: int, end: int) -> None:
        """Raise if tokens [start, end) of a sequence may not be computed in one step."""

    def _table(self, hidden_NH: Tensor, row_M: list[int], gold_M: list[int]) -> Tensor:
        parts: list[Tensor] = []
        for at in range(0, len(row_M), self._num_rows):
            rows = torch.tensor(row_M[at : at + self._num_rows], device=hidden_NH.device)
            gold = torch.tensor(gold_M[at : at + self._num_rows], device=hidden_NH.device)
            hidden_MH = hidden_NH[rows]
            logits_MV = self._logits_of(hidden_MH)
            if logits_MV is None:
                parts.append(torch.empty(len(rows), 0))
                continue
            assert self._keeper is not None, "rows asked before it was said what to keep of them"
            kept = self._keeper(hidden_MH, logits_MV.float(), gold)
            parts.append(torch.from_numpy(pack(kept)))
        return torch.cat(parts) if parts else torch.empty(0, 0)


class BlockRowPooler(RowPooler):
    """Rows of a teacher that is run block by block."""

    def __init__(
        self, logits_of: Callable[[Tensor], Tensor | None], vocab_size: int, block_size: int
    ) -> None:
        super().__init__(logits_of, vocab_size)
        self._block = block_size

    def check_chunk(self, start: int, end: int) -> None:
        """A chunk starts with a block and ends in it, or the mask would be another one."""
        assert start % self._block == 0, f"a step starts at token {start}, inside a block"
        assert end - start <= self._block, f"a step of {end - start} tokens joins blocks"
