"""A batch as torch tensors: the rows that the student reads, and the positions that the loss reads.

Axes: B row, S position in a row, E example, N masked position, C active chunk, M masked aligned
position, K kept logit, R sketch dimension, V vocabulary that both models share.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from storage_schemas.batch import Batch
from storage_schemas.examples import Ints
from storage_schemas.targets import KeptTargets

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """What a cache keeps of the teacher's rows, with the logsumexp at one temperature.

    gold_logit_M is the true token's logit: its log-likelihood over the whole vocabulary plus the
    logsumexp over the shared part, which differ by what lies outside it.
    """

    ids_MK: Tensor
    logits_MK: Tensor
    logsumexp_M: Tensor
    sketch_MR: Tensor
    gold_id_M: Tensor
    gold_logit_M: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRows:
    """A live teacher's rows."""

    logits_MV: Tensor


TeacherRows = KeptRows | DenseRows


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRows:
    """Masked positions, and what the teacher said of them: of a batch, or of a block of it.

    chunk_N is each token's chunk (an index into C), or -1; row_M the position (an index into N) of
    each of the teacher's rows, rising. Without token targets M is 0 and `teacher` None.
    """

    target_id_N: Int[Tensor, " N"]
    time_N: Float[Tensor, " N"]
    chunk_N: Int[Tensor, " N"]
    teacher_logp_C: Float[Tensor, " C"]
    time_C: Float[Tensor, " C"]
    row_M: Int[Tensor, " M"]
    teacher: TeacherRows | None

    def block(self, block: "Block") -> "LossRows":
        """The rows of one block, counted from its first."""
        n, c, m = block.positions, block.chunks, block.tokens
        chunk_N = self.chunk_N[n]
        return LossRows(
            target_id_N=self.target_id_N[n],
            time_N=self.time_N[n],
            chunk_N=torch.where(chunk_N < 0, -1, chunk_N - c.start),
            teacher_logp_C=self.teacher_logp_C[c],
            time_C=self.time_C[c],
            row_M=self.row_M[m] - n.start,
            teacher=None if self.teacher is None else _each(self.teacher, lambda x: x[m]),
        )


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of masked positions that cuts no chunk, with its chunks and teacher's rows."""

    positions: slice
    chunks: slice
    tokens: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBatch:
    """A batch on some device. The counts and blocks are plain numbers, so none waits for a GPU.

    example_BS is None where every row is one example of whole blocks and padding after it.
    """

    student_ids_BS: Tensor
    is_masked_BS: Tensor
    example_BS: Tensor | None
    time_E: Tensor
    rows: LossRows
    blocks: tuple[Block, ...]
    num_maskable: int
    num_text_tokens: int

    @property
    def num_chunks(self) -> int:
        """Active chunks."""
        return len(self.rows.teacher_logp_C)

    @property
    def num_tokens(self) -> int:
        """Positions with a row of the teacher's."""
        return len(self.rows.row_M)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "TensorBatch":
        """The same batch on a device."""
        return _each(self, lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TensorBatch":
        """The same batch in memory that a GPU can fetch by itself."""
        return _each(self, lambda x: x.pin_memory())


def as_tensors(
    batch: Batch, *, temperature: float | None, block_size: int, rows_per_block: int
) -> TensorBatch:
    """The batch's arrays, and its masked positions cut into blocks of about `rows_per_block`.

    Token targets are read at `temperature`; `block_size` is the student's, in tokens.
    """
    row_M = np.zeros(0, np.int32) if batch.row_M is None else batch.row_M
    rows = LossRows(
        target_id_N=_long(batch.student_ids_BS[batch.is_masked_BS]),
        time_N=torch.from_numpy(batch.time_E[batch.example_N]),
        chunk_N=_long(batch.chunk_N),
        teacher_logp_C=torch.from_numpy(batch.teacher_logp_C),
        time_C=torch.from_numpy(batch.time_E[batch.example_C]),
        row_M=_long(row_M),
        teacher=None if batch.tokens is None else teacher_rows(batch, temperature),
    )
    return TensorBatch(
        student_ids_BS=_long(batch.student_ids_BS),
        is_masked_BS=torch.from_numpy(batch.is_masked_BS),
        example_BS=None if _is_plain(batch.example_BS, block_size) else _long(batch.example_BS),
        time_E=torch.from_numpy(batch.time_E),
        rows=rows,
        blocks=cut_blocks(batch.chunk_N, row_M, rows_per_block),
        num_maskable=batch.num_maskable,
        num_text_tokens=int((batch.example_BS >= 0).sum()),
    )


def cut_blocks(chunk_N: Ints, row_M: Ints, rows_per_block: int) -> tuple[Block, ...]:
    """Blocks of at most `rows_per_block` positions, about equal, longer only where one chunk is.

    Without a masked position there is one empty block: every rank has a loss to run backward from.
    """
    num_rows = len(chunk_N)
    # a cut before n is allowed unless the tokens on both sides are of one chunk
    is_inside_N = (chunk_N[1:] == chunk_N[:-1]) & (chunk_N[1:] >= 0)
    allowed = np.flatnonzero(np.r_[True, ~is_inside_N, True]) if num_rows else np.zeros(1, int)
    size = math.ceil(num_rows / max(1, math.ceil(num_rows / rows_per_block)))
    edges = [0]
    while edges[-1] < num_rows:
        last = int(np.searchsorted(allowed, edges[-1] + size, side="right")) - 1
        following = int(np.searchsorted(allowed, edges[-1], side="right"))
        edges.append(int(allowed[max(last, following)]))
    if num_rows == 0:
        edges.append(0)
    first_chunk = [int(chunk_N[:edge].max(initial=-1)) + 1 for edge in edges]
    first_token = np.searchsorted(row_M, edges).tolist()
    cuts = zip(edges, first_chunk, first_token, strict=True)
    return tuple(
        Block(slice(n0, n1), slice(c0, c1), slice(m0, m1))
        for (n0, c0, m0), (n1, c1, m1) in pairwise(cuts)
    )


def teacher_rows(batch: Batch, temperature: float | None) -> TeacherRows:
    """The teacher's rows of a batch that has them, to be read at `temperature`."""
    tokens = batch.tokens
    assert tokens is not None, "a batch with token targets"
    if not isinstance(tokens, KeptTargets):
        return DenseRows(logits_MV=torch.from_numpy(tokens.logits_MV))
    assert temperature is not None, "token targets are read at a temperature"
    plain, softened = (tokens.temperatures.index(one) for one in (1.0, temperature))
    return KeptRows(
        ids_MK=_long(tokens.ids_MK),
        logits_MK=torch.from_numpy(tokens.logits_MK),
        logsumexp_M=torch.from_numpy(tokens.logsumexp_MJ[:, softened]),
        sketch_MR=torch.from_numpy(tokens.sketch_MR),
        gold_id_M=_long(batch.student_ids_BS[batch.is_masked_BS][batch.row_M]),
        gold_logit_M=torch.from_numpy(tokens.gold_logp_M + tokens.logsumexp_MJ[:, plain]),
    )


def rows_on(rows: TeacherRows, device: torch.device) -> TeacherRows:
    """The same rows on a device."""
    return _each(rows, lambda x: x.to(device))


def _is_plain(example_BS: Ints, block_size: int) -> bool:
    length_B = (example_BS >= 0).sum(1)
    is_one_each = (example_BS.max(1) == np.arange(len(example_BS))).all()
    is_whole = (length_B % block_size == 0) | (length_B == example_BS.shape[1])
    return bool(is_one_each and is_whole.all())


def _long(array: Ints) -> Tensor:
    return torch.from_numpy(array).long()


def _each(value: _T, change: Callable[[Tensor], Tensor]) -> _T:
    """The dataclass with every tensor in it, or in a dataclass in it, changed."""
    changed: dict[str, object] = {}
    for field in fields(cast("Any", value)):
        part = getattr(value, field.name)
        if isinstance(part, Tensor):
            changed[field.name] = change(part)
        elif isinstance(part, LossRows | KeptRows | DenseRows):
            changed[field.name] = _each(part, change)
    return cast("_T", replace(cast("Any", value), **changed))
