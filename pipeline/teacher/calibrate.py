"""The calibration: the teacher scores the reserved records, and a basis comes of it.

Axes: N calibration position, M search position, H hidden size, T teacher position.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.cache.writer import Calibrated
from pipeline.diffusion.compdemo import teacher_passes
from pipeline.diffusion.corrupt import corrupt, is_covered
from pipeline.targets.calibrate import LogitsOf, Moments, encode_rows, find_axes
from pipeline.targets.search import SearchRows, coded_bytes, search_basis
from pipeline.targets.sketch import SketchEncoder
from pipeline.teacher.backend import TeacherBackend
from pipeline.teacher.keep import KeepHidden, KeptRows
from storage_schemas.errors import RecipeError
from storage_schemas.examples import Bools, Pair
from storage_schemas.identity import EvenTail, KeptIdentity, NoiseIdentity, SketchTail
from storage_schemas.manifest import Calibration
from storage_schemas.views import TeacherPass

_LOG = logging.getLogger(__name__)
_POSITIONS_A_DIMENSION = 14  # fewer than this times the hidden size cost bytes
_MOST_VIEWS = 8  # of a reserved record
_MOST_SEARCH_ROWS = 1024
_BLOCK_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """The reserved records, and the noise under which the teacher scores them."""

    calibration: Sequence[Pair]
    search: Sequence[Pair]
    noise: NoiseIdentity
    mask_id: int

    def passes(self, pairs: Sequence[Pair], view: int) -> list[tuple[Pair, TeacherPass]]:
        """Every pass of one view of each, as stage 1 would run it."""
        noise = self.noise
        return [
            (pair, one)
            for pair in pairs
            for one in teacher_passes(
                pair,
                corrupt(pair, seed=noise.seed, view=view, eps=noise.eps, times=noise.times),
                mask_id=self.mask_id,
                seed=noise.seed,
                demo_ratio=noise.demo_ratio,
            )
        ]


def calibrate(backend: TeacherBackend, reserved: Reserved, kept: KeptIdentity) -> Calibrated:
    """The basis for the tail that a cache keeps, from as many views as 14 d positions need."""
    tail = kept.tail
    assert not isinstance(tail, EvenTail | None), "this tail needs no calibration"
    head = backend.head
    weight_VH = head.weight.detach()[: kept.vocab_size].float()
    bias = cast("Tensor | None", head.bias)  # None in most heads, whatever the stubs say
    bias_V = None if bias is None else bias.detach()[: kept.vocab_size].float()
    temperature = tail.temperature if isinstance(tail, SketchTail) else max(kept.temperatures)

    @torch.inference_mode()
    def logits_of(hidden_MH: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        return head(hidden_MH.to(head.weight.dtype))[:, : kept.vocab_size].float()

    moments = Moments(weight_VH, temperature=temperature)
    hidden_NH = _collect(backend, reserved, moments, logits_of)
    axes = find_axes(moments, bias_V)
    report = Calibration(
        positions=moments.count,
        search_positions=0,
        hidden_size=weight_VH.shape[1],
        rank=0,
        step=None,
        bytes_per_position=None,
        overfit_bytes=None,
        kl={},
        grad_error=None,
    )
    if not isinstance(tail, SketchTail):
        return Calibrated(basis=axes.cut(1.0, 0), report=report)
    rows = _search_rows(backend, reserved)
    basis, reached = search_basis(
        axes,
        hidden_NH,
        rows,
        logits_of,
        asks=tail.asks,
        amount=tail.amount,
        rank=tail.rank,
        temperatures=kept.temperatures,
    )
    encoder = SketchEncoder.of(basis, hidden_NH.device)
    own_NH = hidden_NH[:: max(1, len(hidden_NH) // len(rows.hidden_MH))]
    own_bytes = coded_bytes(basis, encode_rows(encoder, own_NH, logits_of))
    report = report.model_copy(
        update={
            "search_positions": len(rows.hidden_MH),
            "rank": basis.rank,
            "step": basis.step,
            "bytes_per_position": reached.num_bytes,
            "overfit_bytes": reached.num_bytes - own_bytes,
            "kl": {str(t): value for t, value in reached.kl.items()},
            "grad_error": reached.grad_error,
        }
    )
    _tell(report, tail)
    return Calibrated(basis=basis, report=report)


def _collect(
    backend: TeacherBackend, reserved: Reserved, moments: Moments, logits_of: LogitsOf
) -> Float[Tensor, "N H"]:
    """The hidden states of as many views as are wanted, which `moments` has then seen."""
    hidden: list[Tensor] = []
    for block_NH in _calibration_blocks(backend, reserved):
        for at in range(0, len(block_NH), _BLOCK_ROWS):  # a view's logits may be many gigabytes
            rows_NH = block_NH[at : at + _BLOCK_ROWS]
            moments.add(rows_NH, logits_of(rows_NH))
        hidden.append(block_NH)
        if moments.count >= _POSITIONS_A_DIMENSION * block_NH.shape[1]:
            break
    if not moments.count:
        raise RecipeError(
            "expected reserved records with tokens to calibrate on, got none; raise "
            "targets.tail.calibration_records"
        )
    _LOG.info("calibration: %d positions", moments.count)
    return torch.cat(hidden)


def _tell(report: Calibration, tail: SketchTail) -> None:
    _LOG.info(
        "sketch: step %.4f, rank %d, %.1f bytes a position, gradient error %.3f",
        report.step,
        report.rank,
        report.bytes_per_position,
        report.grad_error,
    )
    wanted = _POSITIONS_A_DIMENSION * report.hidden_size
    if report.positions < wanted:
        _LOG.warning(
            "calibrated on %d positions, fewer than %d (14 times the hidden size): that costs "
            "%.1f bytes a position against what it was fitted to; raise "
            "targets.tail.calibration_records",
            report.positions,
            wanted,
            report.overfit_bytes,
        )
    reached = report.grad_error if tail.asks == "grad_error" else report.bytes_per_position
    if tail.asks != "step" and reached is not None and reached > 1.05 * tail.amount:
        _LOG.warning(
            "expected %s of at most %s, got %.3f: no step gives less",
            tail.asks,
            tail.amount,
            reached,
        )


def _calibration_blocks(
    backend: TeacherBackend, reserved: Reserved
) -> Iterator[Float[Tensor, "N H"]]:
    """All answered rows of one view after the other."""
    for view in range(_MOST_VIEWS):
        passes = [one for _, one in reserved.passes(reserved.calibration, view)]
        blocks = [block.kept for block in backend.rows(passes, KeepHidden())]
        if blocks:
            kept = KeptRows.joined(blocks)
            finite_NH = kept.hidden_MH[np.isfinite(kept.gold_logp_M)]  # others teach nothing
            yield torch.from_numpy(finite_NH).to(backend.device)


def _search_rows(backend: TeacherBackend, reserved: Reserved) -> SearchRows:
    """Rows of the search part, each also with no token of the response to be seen."""
    hidden: list[Tensor] = []
    weaker: list[Tensor] = []
    gold: list[Tensor] = []
    for view in range(_MOST_VIEWS):
        passes = _search_passes(reserved, view)
        hidden.append(hidden_in_order(backend, [one for one, _ in passes]))
        weaker.append(hidden_in_order(backend, [blind for _, blind in passes]))
        gold += [torch.from_numpy(one.clean_ids_T[one.is_answered_T]) for one, _ in passes]
        if sum(map(len, hidden)) >= _MOST_SEARCH_ROWS:
            break
    hidden_MH, weaker_MH = torch.cat(hidden), torch.cat(weaker)
    if not len(hidden_MH):
        raise RecipeError(
            "expected reserved records for the search of a step, got none with tokens; raise "
            "targets.tail.calibration_records (an eighth of them is for the search)"
        )
    chosen = torch.arange(0, len(hidden_MH), max(1, len(hidden_MH) // _MOST_SEARCH_ROWS))
    gold_id_M = torch.cat(gold).long().to(hidden_MH.device)
    return SearchRows(
        hidden_MH=hidden_MH[chosen], weaker_MH=weaker_MH[chosen], gold_id_M=gold_id_M[chosen]
    )


def passes_to_run(
    reserved: Reserved, kept: KeptIdentity, hidden_size: int
) -> Iterator[TeacherPass]:
    """Every pass that `calibrate` gives to the teacher, known without one."""
    count = 0
    for view in range(_MOST_VIEWS):
        if count >= _POSITIONS_A_DIMENSION * hidden_size:
            break
        for _, one in reserved.passes(reserved.calibration, view):
            count += int(one.is_answered_T.sum())
            yield one
    count = 0
    for view in range(_MOST_VIEWS if isinstance(kept.tail, SketchTail) else 0):
        if count >= _MOST_SEARCH_ROWS:
            break
        for one, blind in _search_passes(reserved, view):
            count += int(one.is_answered_T.sum())
            yield from (one, blind)


def _search_passes(reserved: Reserved, view: int) -> list[tuple[TeacherPass, TeacherPass]]:
    return [
        (one, blind)
        for pair, one in reserved.passes(reserved.search, view)
        for blind in [blind_pass(pair, one.is_answered_T, reserved.mask_id)]
        # where the teacher saw nothing either, there is no difference to learn from
        if not np.array_equal(one.noised_ids_T, blind.noised_ids_T)
    ]


def blind_pass(pair: Pair, is_answered_T: Bools, mask_id: int) -> TeacherPass:
    """The pass that answers the same tokens and sees no aligned token of the response.

    A block-wise teacher does not see them in the clean half either.
    """
    everything_C = np.ones(len(pair.chunks_C4), np.bool_)
    is_hidden_T = is_covered(pair.chunks_C4[:, :2], everything_C, len(pair.teacher_ids_T))
    masked_ids_T = np.where(is_hidden_T, np.int32(mask_id), pair.teacher_ids_T)
    return TeacherPass(
        clean_ids_T=masked_ids_T,
        noised_ids_T=masked_ids_T,
        is_answered_T=is_answered_T,
        is_answered_C=everything_C,
    )


def hidden_in_order(backend: TeacherBackend, passes: Sequence[TeacherPass]) -> Float[Tensor, "M H"]:
    """The hidden rows in order of pass and position, however the blocks come."""
    blocks = list(backend.rows(passes, KeepHidden()))
    if not blocks:
        return torch.empty(0, backend.head.weight.shape[1], device=backend.device)
    pass_M = np.concatenate([block.pass_M for block in blocks])
    position_M = np.concatenate([block.position_M for block in blocks])
    order_M = np.lexsort((position_M, pass_M))
    hidden_MH = KeptRows.joined([block.kept for block in blocks]).hidden_MH
    return torch.from_numpy(hidden_MH[order_M]).to(backend.device)
