"""From what a recipe asks for to a basis: the search for the step, on rows of their own.

Axes: N calibration position, M search position, H hidden size, V vocabulary, J temperature.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.targets.calibrate import Axes, LogitsOf, encode_rows, fitted
from pipeline.targets.expand import expand_sketch
from pipeline.targets.measure import GradientError, kl_at, tidal_gradient_error
from pipeline.targets.sketch import SketchDecoder, SketchEncoder
from storage_schemas.basis import Basis
from storage_schemas.sketch_coder import encode_sketch

_ROUNDS = 8
_CLOSE = 0.01  # aim so far below what is asked for, relatively
_START = 0.1  # nats
_STEPS = (1e-4, 10.0)  # where to look
_SEARCH_ROWS = 1024  # calibration rows that a step on trial is fitted to
_BLOCK_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRows:
    """Rows reserved for the search: the teacher's hidden states, a weaker model's, the true tokens.

    weaker_MH stands in for a student: the teacher where it sees less.
    """

    hidden_MH: Float[Tensor, "M H"]
    weaker_MH: Float[Tensor, "M H"]
    gold_id_M: Int[Tensor, " M"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What a basis gives on the search rows: coded bytes a row, nats at each temperature, share."""

    num_bytes: float
    kl: dict[float, float]
    grad_error: float


def search_basis(
    axes: Axes,
    hidden_NH: Float[Tensor, "N H"],
    rows: SearchRows,
    logits_of: LogitsOf,
    *,
    asks: Literal["step", "bytes", "grad_error"],
    amount: float,
    rank: int | None,
    temperatures: tuple[float, ...],
) -> tuple[Basis, Reached]:
    """The fitted basis whose step gives what is asked for, and what it reaches.

    A gradient error or a number of bytes is met from below where that can be.
    """

    def fit(step: float, num_rows: int) -> Basis:
        return fitted(axes.cut(step, rank), hidden_NH, logits_of, num_rows=num_rows)

    def amount_at(step: float) -> float:
        reached = reach(fit(step, _SEARCH_ROWS), rows, logits_of, (axes.temperature,))
        return reached.num_bytes if asks == "bytes" else reached.grad_error

    step = amount if asks == "step" else find_step(amount_at, amount, rises=asks == "grad_error")
    basis = fit(step, 4 * _SEARCH_ROWS)
    return basis, reach(basis, rows, logits_of, temperatures)


def find_step(amount_at: Callable[[float], float], amount: float, *, rises: bool) -> float:
    """A step at which a monotone quantity is within 2 % below an amount, in at most 8 trials.

    By the secant through the trials next to it on each side, in logarithms. Where no trial came
    close from below, the nearest one that is below; failing that, the last.
    """
    trials: dict[float, float] = {}
    step = _START
    while len(trials) < _ROUNDS and step not in trials:
        got = trials[step] = amount_at(step)
        if amount * (1 - 2 * _CLOSE) <= got <= amount:
            return step
        step = _next_step(trials, amount * (1 - _CLOSE), rises)
    below = [trial for trial in trials.items() if trial[1] <= amount]
    return max(below, key=lambda trial: trial[1])[0] if below else step


def _next_step(trials: Mapping[float, float], amount: float, rises: bool) -> float:
    wanted = math.log(amount)
    points = sorted((math.log(step), math.log(max(got, 1e-12))) for step, got in trials.items())
    sides = [
        pair
        for pair in itertools.pairwise(points)
        if (pair[0][1] < wanted) != (pair[1][1] < wanted)
    ]
    if sides:  # inside, so that what is measured with some noise is never measured twice
        (low, got_low), (high, got_high) = min(sides, key=lambda pair: pair[1][0] - pair[0][0])
        share = (wanted - got_low) / (got_high - got_low)
        where = low + (high - low) * min(max(share, 0.05), 0.95)
    else:  # beyond all trials, on the side that the amount must be
        is_right = (points[0][1] < wanted) == rises
        outer, *inner = points[::-1] if is_right else points
        slope = 1.0 if rises else -0.5
        if inner:
            found = (outer[1] - inner[0][1]) / (outer[0] - inner[0][0])
            slope = found if found * slope > 0.05 * slope**2 else slope
        way = min(max(abs(wanted - outer[1]) / abs(slope), 0.01), 2.0)
        where = outer[0] + (way if is_right else -way)
    return min(max(math.exp(where), _STEPS[0]), _STEPS[1])


def reach(
    basis: Basis, rows: SearchRows, logits_of: LogitsOf, temperatures: tuple[float, ...]
) -> Reached:
    """What a fitted basis gives on rows that it was not fitted to."""
    device = rows.hidden_MH.device
    encoder, decoder = SketchEncoder.of(basis, device), SketchDecoder.of(basis, device)
    sketch_MR = encode_rows(encoder, rows.hidden_MH, logits_of)
    divergence: dict[float, list[Tensor]] = {t: [] for t in temperatures}
    errors: list[GradientError] = []
    for at in range(0, len(sketch_MR), _BLOCK_ROWS):
        block = slice(at, at + _BLOCK_ROWS)
        true_MV, gold_id_M = logits_of(rows.hidden_MH[block]), rows.gold_id_M[block]
        for temperature in {*temperatures, basis.temperature}:
            rebuilt_MV = _rebuilt(decoder, sketch_MR[block], true_MV, gold_id_M, temperature)
            if temperature in divergence:
                divergence[temperature].append(kl_at(true_MV, rebuilt_MV, temperature))
            if temperature == basis.temperature:
                weaker_MV = logits_of(rows.weaker_MH[block])
                errors.append(
                    tidal_gradient_error(true_MV, rebuilt_MV, weaker_MV, temperature=temperature)
                )
    return Reached(
        num_bytes=coded_bytes(basis, sketch_MR),
        kl={t: torch.cat(parts).mean().item() for t, parts in divergence.items()},
        grad_error=GradientError.joined(errors).relative().mean().item(),
    )


def _rebuilt(
    decoder: SketchDecoder,
    sketch_MR: Int[Tensor, "M R"],
    true_MV: Float[Tensor, "M V"],
    gold_id_M: Int[Tensor, " M"],
    temperature: float,
) -> Float[Tensor, "M V"]:
    """The rows as stage 2 expands them from what is stored."""
    kept_M = gold_id_M.clamp_max(true_MV.shape[1] - 1)
    return expand_sketch(
        decoder,
        sketch_MR,
        (true_MV / temperature).logsumexp(-1),
        gold_id_M,
        true_MV.gather(1, kept_M[:, None])[:, 0],
        temperature=temperature,
    )


def coded_bytes(basis: Basis, sketch_MR: Int[Tensor, "M R"]) -> float:
    """Bytes a row of the coded sketch."""
    assert basis.coder is not None, "the basis is fitted"
    return len(encode_sketch(sketch_MR.cpu().numpy(), basis.coder)) / max(1, len(sketch_MR))
