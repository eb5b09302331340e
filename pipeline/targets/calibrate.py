"""From reserved records to a basis: moments of the hidden states, and the axes that matter.

Axes: N calibration position, H hidden size, R sketch dimension, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pipeline.targets.fit_coder import fit_coder
from pipeline.targets.sketch import SketchEncoder, shrink
from storage_schemas.basis import Basis

_COVARIANCE_RIDGE, _METRIC_RIDGE = 1e-6, 1e-7  # shares of the mean diagonal
_BLOCK_ROWS, _BLOCK_COLUMNS = 512, 2**14
_LEAST_SCALE = 0.2  # in steps: coefficients below it are as good as always zero
_LEAST_SHARE = 2 / 3  # of the hidden size: sketch dimensions that are kept in any case


LogitsOf = Callable[[Float[Tensor, "M H"]], Float[Tensor, "M V"]]
"""The kept columns of the head's logits."""


class Moments:
    """Sums over calibration positions, in float64: what a basis is made of."""

    def __init__(self, head_VH: Float[Tensor, "V H"], *, temperature: float) -> None:
        """The head's rows that are kept; logits are softened at the distillation temperature."""
        self.head_VH = head_VH
        self.temperature = temperature
        size, device = head_VH.shape[1], head_VH.device
        self.count = 0
        self._sum_H = torch.zeros(size, dtype=torch.float64, device=device)
        self._products_HH = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._shares_V = torch.zeros(len(head_VH), dtype=torch.float64, device=device)

    def add(self, hidden_NH: Float[Tensor, "N H"], logits_NV: Float[Tensor, "N V"]) -> None:
        """One block of positions."""
        hidden = hidden_NH.double()
        self.count += len(hidden)
        self._sum_H += hidden.sum(0)
        self._products_HH += hidden.T @ hidden
        self._shares_V += (logits_NV.float() / self.temperature).softmax(-1).sum(0).double()

    @property
    def mean_H(self) -> Float[Tensor, " H"]:
        """Mean hidden state."""
        return self._sum_H / self.count

    @property
    def covariance_HH(self) -> Float[Tensor, "H H"]:
        """Covariance of the hidden states, with a small ridge."""
        mean_H = self.mean_H
        return _ridged(self._products_HH / self.count - mean_H.outer(mean_H), _COVARIANCE_RIDGE)

    @property
    def share_V(self) -> Float[Tensor, " V"]:
        """Mean probability of each token at the temperature."""
        return self._shares_V / self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The full set of sketch axes, most important first; a basis takes the first R of them."""

    mean_H: Float[Tensor, " H"]
    encode_HH: Float[Tensor, "H R"]
    scale_H: Float[Tensor, " R"]
    decode_HV: Float[Tensor, "R V"]
    base_V: Float[Tensor, " V"]
    temperature: float

    def cut(self, step: float, rank: int | None) -> Basis:
        """The basis at a step, without its coder; rank None keeps what the step can tell from 0."""
        told = int((self.scale_H >= _LEAST_SCALE * step).sum())
        least = round(_LEAST_SHARE * len(self.mean_H))
        kept = slice(min(max(told, least) if rank is None else rank, len(self.scale_H)))
        return Basis(
            mean_H=_array(self.mean_H),
            encode_HR=_array(self.encode_HH[:, kept]),
            scale_R=_array(self.scale_H[kept]),
            decode_RV=np.ascontiguousarray(self.decode_HV[kept].cpu().numpy()),
            base_V=_array(self.base_V),
            bias_V=np.zeros(len(self.base_V), np.float32),
            step=step,
            temperature=self.temperature,
            coder=None,
        )


def find_axes(moments: Moments, bias_V: Float[Tensor, " V"] | None) -> Axes:
    """The axes of the hidden states in which equal errors do equal harm to likely logits.

    With C = cov(h) and G = W' diag(w) W, W centered so that w'W = 0 (a constant a row harms no
    softmax), C^(1/2) G C^(1/2) = Q L Q' gives

        E = C^(-1/2) Q L^(1/2),    D = L^(-1/2) Q' C^(1/2) W':

    coefficients (h - mean) E of variance L, in nats of w-weighted rms logit.
    """
    share_V = moments.share_V
    head_VH = moments.head_VH.double()
    head_VH = head_VH - share_V @ head_VH
    metric_HH = _ridged(head_VH.T @ (head_VH * share_V[:, None]), _METRIC_RIDGE)
    root_HH, inverse_HH = _roots(moments.covariance_HH)
    size_H, turn_HH = _eigen(root_HH @ metric_HH @ root_HH)
    order = size_H.argsort(descending=True)
    scale_H, turn_HH = size_H[order].clamp_min(1e-12).sqrt(), turn_HH[:, order]
    base_V = head_VH @ moments.mean_H
    if bias_V is not None:
        base_V = base_V + bias_V - share_V @ bias_V.double()
    return Axes(
        mean_H=moments.mean_H.float(),
        encode_HH=(inverse_HH @ turn_HH * scale_H).float(),
        scale_H=scale_H.float(),
        decode_HV=_decoding((turn_HH.T @ root_HH / scale_H[:, None]).float(), head_VH.float()),
        base_V=base_V.float(),
        temperature=moments.temperature,
    )


def fitted(
    basis: Basis,
    hidden_NH: Float[Tensor, "N H"],
    logits_of: LogitsOf,
    *,
    num_rows: int = 4096,
) -> Basis:
    """The basis with its entropy coder and its static bias, fitted to `num_rows` of the rows.

    The bias is that of rounding without shaping: one vector, which takes out most of what coarse
    rounding adds to every logit alike.
    """
    encoder = SketchEncoder.of(basis, hidden_NH.device)
    rows_NH = hidden_NH[:: max(1, len(hidden_NH) // num_rows)][:num_rows]
    target_NR = encoder.coefficients(rows_NH)
    rounded_NR = shrink(target_NR, encoder.threshold_R).round()
    error_R = ((target_NR - rounded_NR) ** 2).mean(0) * basis.step**2
    decode_RV = torch.from_numpy(basis.decode_RV)
    bias_V = torch.zeros(basis.vocab_size)
    errors = cast("list[float]", error_R.tolist())
    for r, error in enumerate(errors):  # row by row: D squared would be as large as D
        bias_V += error * decode_RV[r].float() ** 2
    sketch_NR = encode_rows(encoder, rows_NH, logits_of)
    return replace(basis, bias_V=bias_V.numpy(), coder=fit_coder(sketch_NR.cpu().numpy()))


def encode_rows(
    encoder: SketchEncoder, hidden_MH: Float[Tensor, "M H"], logits_of: LogitsOf
) -> Int[Tensor, "M R"]:
    """The sketch of many rows whose logits are made a block at a time."""
    blocks = _split(hidden_MH, _BLOCK_ROWS)
    return torch.cat([encoder.encode(block, logits_of(block)) for block in blocks])


def _decoding(back_HH: Float[Tensor, "R H"], head_VH: Float[Tensor, "V H"]) -> Float[Tensor, "R V"]:
    """The product in float16, made a few columns at a time: in float32 it is gigabytes."""
    blocks = _split(head_VH, _BLOCK_COLUMNS)
    return torch.cat([(back_HH @ block.T).half() for block in blocks], dim=1)


def _split(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", rows.split(size))


def _eigen(matrix_HH: Float[Tensor, "H H"]) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of a symmetric matrix."""
    return cast("Any", torch.linalg).eigh(matrix_HH)


def _roots(matrix_HH: Float[Tensor, "H H"]) -> tuple[Tensor, Tensor]:
    """The symmetric square root, and its inverse."""
    size_H, turn_HH = _eigen(matrix_HH)
    size_H = size_H.clamp_min(size_H.max() * 1e-14)
    return turn_HH * size_H.sqrt() @ turn_HH.T, turn_HH * size_H.rsqrt() @ turn_HH.T


def _ridged(matrix_HH: Float[Tensor, "H H"], share: float) -> Float[Tensor, "H H"]:
    mean = matrix_HH.diagonal().mean()
    return matrix_HH + share * mean * torch.eye(
        len(matrix_HH), dtype=matrix_HH.dtype, device=matrix_HH.device
    )


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.float().cpu().numpy())
