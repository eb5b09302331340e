"""Held-out likelihood: how well a student fills in masked text that nobody trained on (section 5).

Axes: B example, S student position, N masked position (flattened), H hidden size, V vocabulary,
R held-out record, L noise level.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.evaluate.masks import LEVELS, HeldOut, draw_held_out
from pipeline.evaluate.scores import (
    HeldOutScores,
    PairedDifference,
    TokenScores,
    paired_difference,
)
from pipeline.evaluate.share import ALL, Share
from pipeline.objectives.likelihood import gold_logp
from pipeline.objectives.precision import upcast
from pipeline.student.forward import head, masked_hidden

__all__ = [
    "LEVELS",
    "HeldOut",
    "HeldOutScores",
    "PairedDifference",
    "TokenScores",
    "draw_held_out",
    "evaluate_held_out",
    "paired_difference",
]

_ROWS = 2048  # positions whose logits exist at one time

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _View:
    """One record under one level's mask."""

    record: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a model says at the masked positions of a batch; view_N counts within the batch."""

    view_N: NDArray[np.int64]
    nll_N: NDArray[np.float64]
    is_correct_N: NDArray[np.bool_]
    is_content_N: NDArray[np.bool_]


Work = Callable[[PreTrainedModel], Scored]
Call = Callable[[Work], Scored]


@torch.no_grad()  # no inference_mode: what it makes cannot be gathered into sharded weights
def evaluate_held_out(
    model: PreTrainedModel,
    held_out: HeldOut,
    *,
    mask_id: int,
    block_size: int,
    batch_tokens: int = 8192,
    on_progress: Progress | None = None,
    call: Call | None = None,
    share: Share = ALL,
) -> HeldOutScores:
    """The model's scores on every stored mask, under the block-diffusion mask.

    A batch holds views of one length, hence no padding, and at most `batch_tokens` tokens of it (or
    one view). `on_progress` is told how many views of how many are done. In training, `call` runs
    a piece of work as the trainer's model does, and processes share the batches: each has the whole
    scores in the end.
    """
    shape = (2, len(held_out.records), len(held_out.levels))  # axis 0: content, all targets
    nll, num_correct, num_masked = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    done, total = 0, shape[1] * shape[2]
    was_training = model.training
    model.eval()
    for views, is_counted in share.of(list(_batches(held_out, batch_tokens))):
        work = _work(held_out, views, mask_id=mask_id, block_size=block_size)
        scored = work(model) if call is None else call(work)
        if not is_counted:
            continue
        at = [view.record for view in views], [view.level for view in views]
        for kind, counted_N in enumerate((scored.is_content_N, np.ones_like(scored.is_content_N))):
            here = (kind, *at)
            nll[here] = _sums(scored.nll_N * counted_N, scored.view_N, len(views))
            num_correct[here] = _sums(scored.is_correct_N & counted_N, scored.view_N, len(views))
            num_masked[here] = _sums(counted_N, scored.view_N, len(views))
        done += len(views)
        if on_progress is not None:
            on_progress(done, total)
    model.train(was_training)
    return _scores(held_out, share.sum(np.stack([nll, num_correct, num_masked])))


def _scores(held_out: HeldOut, sums: NDArray[np.float64]) -> HeldOutScores:
    """From the sums of nll, correct and masked tokens, each [content or all, record, level]."""
    nll, num_correct, num_masked = sums
    maskable = [
        [int(flags.sum()) for flags in (record.is_content_S, record.is_target_S)]
        for record in held_out.records
    ]
    content, target = (
        TokenScores(
            levels=held_out.levels,
            nll_RL=nll[kind],
            num_correct_RL=num_correct[kind].astype(np.int64),
            num_masked_RL=num_masked[kind].astype(np.int64),
            num_maskable_R=np.array(maskable)[:, kind],
        )
        for kind in range(2)
    )
    return HeldOutScores(
        fingerprint=held_out.fingerprint,
        record_ids=tuple(record.record_id for record in held_out.records),
        content=content,
        target=target,
    )


def _batches(held_out: HeldOut, batch_tokens: int) -> Iterator[list[_View]]:
    """Views of equal length together, the longest first: if memory is short it fails soon."""

    def length(view: _View) -> int:
        return len(held_out.records[view.record].student_ids_S)

    views = [
        _View(record, level)
        for record in range(len(held_out.records))
        for level in range(len(held_out.levels))
    ]
    for num_tokens, group in groupby(sorted(views, key=length, reverse=True), key=length):
        same = list(group)
        size = max(1, batch_tokens // num_tokens)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _work(held_out: HeldOut, views: list[_View], *, mask_id: int, block_size: int) -> Work:
    def work(model: PreTrainedModel) -> Scored:
        return _score(model, held_out, views, mask_id=mask_id, block_size=block_size)

    return work


def _score(
    model: PreTrainedModel, held_out: HeldOut, views: list[_View], *, mask_id: int, block_size: int
) -> Scored:
    records = [held_out.records[view.record] for view in views]
    mask = np.stack([r.is_masked_LS[v.level] for r, v in zip(records, views, strict=True)])
    ids_BS = torch.from_numpy(np.stack([r.student_ids_S for r in records])).long()
    is_masked_BS = torch.from_numpy(mask)
    device = model.device
    hidden_NH = masked_hidden(
        model,
        ids_BS.to(device),
        is_masked_BS.to(device),
        mask_id=mask_id,
        block_size=block_size,
    )
    logp_N, best_N = _read_out(model, hidden_NH, ids_BS[is_masked_BS].to(device))
    return Scored(
        view_N=mask.nonzero()[0],
        nll_N=-logp_N.double().cpu().numpy(),
        is_correct_N=(best_N.cpu() == ids_BS[is_masked_BS]).numpy(),
        is_content_N=np.stack([r.is_content_S for r in records])[mask],
    )


def _read_out(
    model: PreTrainedModel, hidden_NH: Float[Tensor, "N H"], ids_N: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Log-likelihood of the true token and the most likely token, a block of rows at a time."""
    logp, best = [upcast(hidden_NH.new_zeros(0))], [ids_N[:0]]
    for start in range(0, len(ids_N), _ROWS):
        rows = slice(start, start + _ROWS)
        logits_NV = head(model)(hidden_NH[rows])
        logp.append(gold_logp(logits_NV, ids_N[rows]))
        best.append(logits_NV.argmax(-1))
    return torch.cat(logp), torch.cat(best)


def _sums(
    values_N: NDArray[np.float64] | NDArray[np.bool_], view_N: NDArray[np.int64], num_views: int
) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.zeros(num_views)
    np.add.at(sums, view_N, values_N.astype(np.float64))
    return sums
