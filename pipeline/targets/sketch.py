"""The shaped sketch: a teacher's row of logits as a few small integers (docs/sketch.md).

Logits are linear in the last hidden state, z = W h. So h is kept, in coordinates in which equal
errors move the logits of likely tokens equally, rounded so that its error avoids the directions
that the row's own likeliest tokens see.

Axes: M position, H hidden size, R sketch dimension, V vocabulary, K likely token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from storage_schemas.basis import Basis

_LIKELY, _LIKELY_PART = 128, 64  # tokens of a row that its rounding protects: 128, or V / 64
_BY_SHARE, _BY_SQUARE = 5.0, 2.0  # weights of the errors in KL, and in the gradient's norm
_RATE = 0.1  # how many squared steps one bit is worth
_COLUMNS = 64  # coefficients that are rounded with one factorization
_GATHERED = 2**25  # numbers of the decoding matrix that are looked up at once


@dataclass(frozen=True, slots=True)
class SketchEncoder:
    """A basis on the device that runs the teacher, ready to encode."""

    mean_H: Float[Tensor, " H"]
    encode_HR: Float[Tensor, "H R"]
    decode_VR: Float[Tensor, "V R"]  # transposed, so that a token's column is one stretch of memory
    threshold_R: Float[Tensor, " R"]
    step: float
    temperature: float

    @classmethod
    def of(cls, basis: Basis, device: torch.device) -> "SketchEncoder":
        """Copies the basis; in float16 on a GPU the decoding matrix takes what it takes on disk."""
        decode_RV = torch.from_numpy(basis.decode_RV).to(device)
        return cls(
            mean_H=torch.from_numpy(basis.mean_H).to(device),
            encode_HR=torch.from_numpy(basis.encode_HR).to(device),
            decode_VR=decode_RV.T.contiguous(),
            threshold_R=_RATE
            / 2
            * bit_slopes(torch.from_numpy(basis.scale_R) / basis.step).to(device),
            step=basis.step,
            temperature=basis.temperature,
        )

    def encode(
        self, hidden_MH: Float[Tensor, "M H"], logits_MV: Float[Tensor, "M V"]
    ) -> Int[Tensor, "M R"]:
        """The integers of each row, int16; equal rows give equal integers."""
        rank = self.encode_HR.shape[1]
        likely = num_likely(logits_MV.shape[1])
        rows = max(1, _GATHERED // (likely * rank))
        parts = [
            self._encode(hidden_MH[at : at + rows], logits_MV[at : at + rows], likely)
            for at in range(0, len(hidden_MH), rows)
        ]
        empty = torch.empty(0, rank, dtype=torch.int16, device=self.mean_H.device)
        return torch.cat([empty, *parts])

    def _encode(
        self, hidden_MH: Float[Tensor, "M H"], logits_MV: Float[Tensor, "M V"], likely: int
    ) -> Int[Tensor, "M R"]:
        target_MR = self.coefficients(hidden_MH)
        rounded_MR = round_shaped(target_MR, self.seen(logits_MV, likely), self.threshold_R)
        limit = torch.iinfo(torch.int16).max
        return rounded_MR.clamp(-limit, limit).to(torch.int16)

    def seen(self, logits_MV: Float[Tensor, "M V"], likely: int) -> Float[Tensor, "M K R"]:
        """What each row's likely tokens see of an error in its coefficients, weighted."""
        logit_MK, id_MK = logits_MV.topk(likely, dim=-1)
        scaled_M1 = (logits_MV / self.temperature).logsumexp(-1, keepdim=True)
        share_MK = (logit_MK / self.temperature - scaled_M1).exp()
        seen_MKR = self.decode_VR[id_MK].float()
        within_M1K = (share_MK / share_MK.sum(-1, keepdim=True))[:, None]
        seen_MKR -= within_M1K @ seen_MKR
        square_MK = share_MK**2
        weight_MK = _BY_SHARE * share_MK + _BY_SQUARE * square_MK / square_MK.sum(-1, keepdim=True)
        seen_MKR *= weight_MK.sqrt()[..., None]
        return seen_MKR

    def coefficients(self, hidden_MH: Float[Tensor, "M H"]) -> Float[Tensor, "M R"]:
        """What the integers round: the row's coefficients, in steps."""
        return (hidden_MH.float() - self.mean_H) @ self.encode_HR / self.step


def num_likely(vocab_size: int) -> int:
    """How many tokens of a row its rounding protects."""
    return min(_LIKELY, -(-vocab_size // _LIKELY_PART))


@dataclass(frozen=True, slots=True)
class SketchDecoder:
    """A basis on the student's device, ready to decode."""

    decode_RV: Float[Tensor, "R V"]
    base_V: Float[Tensor, " V"]
    step: float

    @classmethod
    def of(cls, basis: Basis, device: torch.device) -> "SketchDecoder":
        """Copies the basis; the static bias of the rounding is taken out of the mean logit."""
        base_V = torch.from_numpy(basis.base_V - basis.bias_V / (4 * basis.temperature))
        return cls(
            decode_RV=torch.from_numpy(basis.decode_RV).to(device).float(),
            base_V=base_V.to(device),
            step=basis.step,
        )

    def rows(self, sketch_MR: Int[Tensor, "M R"]) -> Float[Tensor, "M V"]:
        """The logits z^ = m - bias / (4 T) + s q D, up to a constant a row."""
        scaled_MR = sketch_MR.to(self.decode_RV.device).float() * self.step
        return torch.addmm(self.base_V, scaled_MR, self.decode_RV)


def bit_slopes(rms_R: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """Bits that a coefficient costs more with each integer further from zero.

    -log2 rho of the two-sided geometric distribution rho^|q| with this mean square.
    """
    square_R = rms_R.double() ** 2 + 1e-4
    rho_R = (square_R + 1 - (2 * square_R + 1).sqrt()) / square_R
    return -rho_R.log2().float()


def shrink(number: Float[Tensor, "..."], threshold: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Towards zero by the threshold: rounded, it minimizes (x - q)^2 + 2 threshold |q|."""
    return number.sign() * (number.abs() - threshold).clamp_min(0)


def round_shaped(
    target_MR: Float[Tensor, "M R"],
    seen_MKR: Float[Tensor, "M K R"],
    threshold_R: Float[Tensor, " R"],
) -> Float[Tensor, "M R"]:
    """Integers q for which (x - q)' (I + S'S) (x - q) + sum_r 2 threshold_r |q_r| is small.

    x = target, S = seen, both of one row. From the last coefficient to the first, each is rounded
    to the best integer given the errors made so far, if those before it could still be any real
    number (Babai's nearest plane). That takes the Schur complement of what is before, which with
    few rows of S costs R K^2 and not R^3: with P = (I_K + sum_{j < lo} s_j s_j')^-1, columns
    [lo, hi) have the complement I + S_b' P S_b. P starts at I and shrinks as columns are added, so
    the complements are made from the first block to the last, and used from the last to the first.
    """
    rank = seen_MKR.shape[2]
    columns = [slice(at, min(at + _COLUMNS, rank)) for at in range(0, rank, _COLUMNS)]
    blocks = list(_complements([seen_MKR[:, :, block] for block in columns]))
    whole_MR = torch.zeros_like(target_MR)
    felt_MK = torch.zeros_like(seen_MKR[:, :, 0])  # S e over the errors made so far
    for block, (inner_MKB, upper_MBB) in reversed(list(zip(columns, blocks, strict=True))):
        # the errors that would undo what is felt already
        pull_MB1 = inner_MKB.mT @ felt_MK[..., None]
        wanted_MB = -torch.cholesky_solve(pull_MB1, upper_MBB, upper=True)[..., 0]
        error_MB = _round_block(target_MR[:, block], wanted_MB, upper_MBB, threshold_R[block])
        whole_MR[:, block] = target_MR[:, block] - error_MB
        felt_MK += (seen_MKR[:, :, block] @ error_MB[..., None])[..., 0]
    return whole_MR.round()  # they are integers but for the subtraction


def _complements(
    blocks: Sequence[Tensor],  # [M, K, B], of which the last may be narrower
) -> Iterator[tuple[Tensor, Tensor]]:
    """P S_b, and the upper factor of the Schur complement I + S_b' P S_b, block after block."""
    inverse_MKK: Tensor | None = None  # P; none while it is I
    for number, seen_MKB in enumerate(blocks):
        inner_MKB = seen_MKB if inverse_MKK is None else inverse_MKK @ seen_MKB
        schur_MBB = seen_MKB.mT @ inner_MKB
        schur_MBB.diagonal(dim1=-2, dim2=-1).add_(1.0)
        lower_MBB = _cholesky(schur_MBB)
        yield inner_MKB, lower_MBB.mT
        if number + 1 == len(blocks):
            return
        solved_MBK = _solve_lower(lower_MBB, inner_MKB.mT)
        if inverse_MKK is None:
            size = seen_MKB.shape[1]
            eye_KK = torch.eye(size, dtype=seen_MKB.dtype, device=seen_MKB.device)
            inverse_MKK = eye_KK.repeat(len(seen_MKB), 1, 1)
        inverse_MKK.baddbmm_(solved_MBK.mT, solved_MBK, alpha=-1)


def _cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of each symmetric matrix."""
    return cast("Any", torch.linalg).cholesky(matrix)


def _solve_lower(lower: Tensor, right: Tensor) -> Tensor:
    return cast("Any", torch.linalg).solve_triangular(lower, right, upper=False)


def _round_block(
    target_MB: Float[Tensor, "M B"],
    wanted_MB: Float[Tensor, "M B"],
    upper_MBB: Float[Tensor, "M B B"],
    threshold_B: Float[Tensor, " B"],
) -> Float[Tensor, "M B"]:
    """The errors x - q of one block, last column first."""
    diagonal_MB = upper_MBB.diagonal(dim1=-2, dim2=-1)
    dead_MB = threshold_B / diagonal_MB**2
    off_MB = torch.zeros_like(target_MB)  # error minus wanted error
    error_MB = torch.zeros_like(target_MB)
    for i in range(target_MB.shape[1] - 1, -1, -1):
        carried_M = (upper_MBB[:, i, i + 1 :] * off_MB[:, i + 1 :]).sum(-1) / diagonal_MB[:, i]
        best_M = target_MB[:, i] - wanted_MB[:, i] + carried_M
        error_MB[:, i] = target_MB[:, i] - shrink(best_M, dead_MB[:, i]).round()
        off_MB[:, i] = error_MB[:, i] - wanted_MB[:, i]
    return error_MB
