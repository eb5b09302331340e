"""Ways to keep a distribution in few bytes, measured side by side on real logits.

Each method turns true rows of logits into rebuilt ones and says what a row costs. Measured are the
KL divergence and the relative error of TIDAL's gradient, at each temperature and lambda, with
standard errors over files.

Axes: M row, H hidden size, V vocabulary, K kept logit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from real_logits import Scored
from stored_rows import kept_of
from torch import Tensor

from pipeline.targets.calibrate import Axes, encode_rows, fitted
from pipeline.targets.expand import expand_even, expand_mean_logit, expand_sketch
from pipeline.targets.measure import kl_at, tidal_gradient_error
from pipeline.targets.search import coded_bytes
from pipeline.targets.sketch import SketchDecoder, SketchEncoder
from pipeline.targets.top_k import keep_top_k, logsumexp_at
from storage_schemas.basis import Basis
from storage_schemas.identity import EvenTail
from storage_schemas.targets import KeptTargets
from storage_schemas.zarr_layout import encode_tokens

TEMPERATURES = (1.0, 2.0)
SHARES = (0.1, 0.3, 0.6, 0.9)  # lambda: the teacher's part of TIDAL's target
_BLOCK = 128
_DRAWS = 256  # of random-sampling distillation
_POLYNOMIAL_K, _DEGREE = 128, 7
_ID_BYTES, _COEFFICIENT_BYTES, _SCALAR_BYTES = 2, 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One block of rows: the true logits, the hidden states they come from, the true tokens."""

    hidden_MH: Tensor
    logits_MV: Tensor
    gold_M: Tensor


Rebuild = Callable[[Rows, float], Tensor]
"""Rows and a temperature in, rebuilt logits out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to keep a row; num_bytes is what its rows take, coded or compressed, with scalars."""

    name: str
    family: str
    num_bytes: float
    rebuild: Rebuild


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one method gives on one text: means over files, and their standard errors."""

    name: str
    family: str
    text: str
    num_bytes: float
    kl: dict[float, tuple[float, float]]
    grad_error: dict[tuple[float, float], tuple[float, float]]
    grad_error_p95: float


class Bench:
    """The head, the axes of the calibration, and what is measured with them."""

    def __init__(self, head_VH: Tensor, axes: Axes, calibration_NH: Tensor) -> None:
        self.head_VH = head_VH
        self.axes = axes
        self.calibration_NH = calibration_NH
        self.base_V = axes.base_V

    def logits(self, hidden_MH: Tensor) -> Tensor:
        """The model's logits."""
        return hidden_MH @ self.head_VH.T

    def fit(self, step: float) -> Basis:
        """The basis at a step."""
        return fitted(self.axes.cut(step, None), self.calibration_NH, self.logits)

    def measure(self, method: Method, scored: Scored, text: str) -> Measured:
        """The method's errors on the chosen rows of a text."""
        hidden_MH = torch.from_numpy(_flat(scored)[scored.chosen_M])
        gold_M = torch.from_numpy(scored.gold_VQP.reshape(-1)[scored.chosen_M]).long()
        student_MH = torch.from_numpy(scored.student_MH)
        kl: dict[float, list[Tensor]] = {t: [] for t in TEMPERATURES}
        error: dict[tuple[float, float], list[Tensor]] = {
            (t, share): [] for t in TEMPERATURES for share in SHARES
        }
        for at in range(0, len(hidden_MH), _BLOCK):
            part = slice(at, at + _BLOCK)
            true_MV, student_MV = self.logits(hidden_MH[part]), self.logits(student_MH[part])
            rows = Rows(hidden_MH=hidden_MH[part], logits_MV=true_MV, gold_M=gold_M[part])
            for t in TEMPERATURES:
                rebuilt_MV = method.rebuild(rows, t)
                kl[t].append(kl_at(true_MV, rebuilt_MV, t))
                for share in SHARES:
                    both = tidal_gradient_error(
                        true_MV, rebuilt_MV, student_MV, temperature=t, share=share
                    )
                    error[t, share].append(both.error_M / both.gradient_M)
        file_M = scored.file_M
        return Measured(
            name=method.name,
            family=method.family,
            text=text,
            num_bytes=method.num_bytes,
            kl={t: over_files(torch.cat(parts), file_M) for t, parts in kl.items()},
            grad_error={key: over_files(torch.cat(p), file_M) for key, p in error.items()},
            grad_error_p95=torch.cat(error[2.0, 0.3]).quantile(0.95).item(),
        )

    def sketch(self, basis: Basis, sample_MH: Tensor) -> Method:
        """The shaped sketch, with its coded bytes measured on a sample of rows."""
        device = torch.device("cpu")
        encoder, decoder = SketchEncoder.of(basis, device), SketchDecoder.of(basis, device)

        encoded: dict[int, Tensor] = {}  # of the rows in hand, for both temperatures

        def rebuild(rows: Rows, temperature: float) -> Tensor:
            if id(rows) not in encoded:
                encoded.clear()
                encoded[id(rows)] = encoder.encode(rows.hidden_MH, rows.logits_MV)
            return expand_sketch(
                decoder,
                encoded[id(rows)],
                (rows.logits_MV / temperature).logsumexp(-1),
                rows.gold_M,
                rows.logits_MV.gather(1, rows.gold_M[:, None])[:, 0],
                temperature=temperature,
            )

        coded = coded_bytes(basis, encode_rows(encoder, sample_MH, self.logits))
        scalars = (len(TEMPERATURES) + 1) * _SCALAR_BYTES
        return Method(
            name=f"sketch, step {basis.step:g}",
            family="shaped sketch",
            num_bytes=coded + scalars,
            rebuild=rebuild,
        )

    def plain(self, step: float, sample_MH: Tensor) -> Method:
        """Rounding without shaping or a price on bits: what the two of them are worth."""
        basis = self.axes.cut(step, None)
        device = torch.device("cpu")
        encoder, decoder = SketchEncoder.of(basis, device), SketchDecoder.of(basis, device)
        rounded = encoder.coefficients(sample_MH).round().numpy().astype(np.int16)
        scalars = (len(TEMPERATURES) + 1) * _SCALAR_BYTES
        return Method(
            name=f"plain rounding, step {step:g}",
            family="plain rounding",
            num_bytes=entropy_bytes(rounded) + scalars,
            rebuild=lambda rows, temperature: decoder.rows(
                encoder.coefficients(rows.hidden_MH).round()
            ),
        )

    def top_k(self, k: int, sample_MH: Tensor, *, mean_logit: bool) -> Method:
        """The k largest logits with the exact mass of the rest, spread evenly or as the mean."""

        def rebuild(rows: Rows, temperature: float) -> Tensor:
            ids_MK, logits_MK = keep_top_k(rows.logits_MV, k=k)
            lse_M = (rows.logits_MV / temperature).logsumexp(-1)
            if mean_logit:
                return expand_mean_logit(
                    ids_MK, logits_MK, lse_M, self.base_V, temperature=temperature
                )
            size = rows.logits_MV.shape[1]
            return expand_even(ids_MK, logits_MK, lse_M, vocab_size=size, temperature=temperature)

        shape = "mean logit" if mean_logit else "even"
        return Method(
            name=f"top-{k}, {shape} tail",
            family=f"top-k, {shape} tail",
            num_bytes=self.stored_bytes(k, sample_MH, ("ids_low", "logit_step", "logit_max"))
            + (len(TEMPERATURES) + 1) * _SCALAR_BYTES,
            rebuild=rebuild,
        )

    def stored_bytes(self, k: int, sample_MH: Tensor, arrays: tuple[str, ...]) -> float:
        """Bytes a row that these arrays of a top k take in a cache."""
        logits_MV = self.logits(sample_MH)
        ids_MK, logits_MK = keep_top_k(logits_MV, k=k)
        num_rows = len(sample_MH)
        tokens = KeptTargets(
            ids_MK=ids_MK.int().numpy(),
            logits_MK=logits_MK.numpy(),
            logsumexp_MJ=logsumexp_at(logits_MV, TEMPERATURES).numpy(),
            gold_logp_M=np.zeros(num_rows, np.float32),
            sketch_MR=np.zeros((num_rows, 0), np.int16),
            temperatures=TEMPERATURES,
            vocab_size=logits_MV.shape[1],
        )
        kept = kept_of(logits_MV.shape[1], top_k=k, tail=EvenTail())
        files = encode_tokens(tokens, kept, None, np.zeros(num_rows, np.bool_))
        objects = [data for path, data in files.items() if path.split("/")[0] in arrays]
        return sum(map(len, objects)) / num_rows

    def polynomial(self, sample_MH: Tensor) -> Method:
        """The ids of the top 128, their logits as a polynomial in log rank, the exact mass.

        The tail is shaped like the mean logit, the best help that a top k can get here.
        """
        rank_K = torch.arange(1, _POLYNOMIAL_K + 1, dtype=torch.float64).log()
        powers_KD = torch.stack([rank_K**d for d in range(_DEGREE + 1)], dim=1)
        fit_DK = torch.linalg.pinv(powers_KD)

        def rebuild(rows: Rows, temperature: float) -> Tensor:
            ids_MK, logits_MK = keep_top_k(rows.logits_MV, k=_POLYNOMIAL_K)
            curve_MK = (logits_MK.double() @ fit_DK.T @ powers_KD.T).float()
            lse_M = (rows.logits_MV / temperature).logsumexp(-1)
            return expand_mean_logit(ids_MK, curve_MK, lse_M, self.base_V, temperature=temperature)

        scalars = (len(TEMPERATURES) + 1) * _SCALAR_BYTES
        return Method(
            name=f"polynomial of the top {_POLYNOMIAL_K}",
            family="polynomial of the top 128",
            num_bytes=self.stored_bytes(_POLYNOMIAL_K, sample_MH, ("ids_low",))
            + (_DEGREE + 1) * _COEFFICIENT_BYTES
            + scalars,
            rebuild=rebuild,
        )

    def sampling(self) -> Method:
        """Random-sampling distillation: 256 draws from the softened distribution, as counts.

        What was drawn once estimates what was not drawn (Good and Turing), and goes to all tokens
        in the shape of the mean logit. A row costs an id and a count for each token that was drawn.
        """
        generator = torch.Generator().manual_seed(0)

        def draw(logits_MV: Tensor, temperature: float) -> Tensor:
            share_MV = (logits_MV / temperature).softmax(-1)
            drawn_MD = torch.multinomial(share_MV, _DRAWS, replacement=True, generator=generator)
            ones = torch.ones_like(drawn_MD, dtype=torch.float32)
            return torch.zeros_like(share_MV).scatter_add_(1, drawn_MD, ones)

        def rebuild(rows: Rows, temperature: float) -> Tensor:
            count_MV = draw(rows.logits_MV, temperature)
            unseen_M1 = ((count_MV == 1).sum(-1, keepdim=True) / _DRAWS).clamp(1 / _DRAWS, 0.99)
            shape_V = (self.base_V / temperature).softmax(-1)
            share_MV = (1 - unseen_M1) * count_MV / _DRAWS + unseen_M1 * shape_V
            return temperature * share_MV.clamp_min(1e-30).log()

        sample_MV = self.logits(self.calibration_NH[:: len(self.calibration_NH) // 256])
        distinct = (draw(sample_MV, 2.0) > 0).sum(-1).float().mean().item()
        return Method(
            name=f"random sampling, {_DRAWS} draws",
            family="random-sampling KD",
            num_bytes=distinct * (_ID_BYTES + 1),
            rebuild=rebuild,
        )


def over_files(value_M: Tensor, file_M: np.ndarray) -> tuple[float, float]:
    """The mean over rows, and its standard error with files as the unit."""
    values = value_M.double().numpy()
    mean = float(values.mean())
    # the ratio estimator: files have different numbers of rows
    files, inverse = np.unique(file_M, return_inverse=True)
    sums = np.bincount(inverse, values - mean)
    count = len(files)
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values)
    return mean, error


def entropy_bytes(rows: np.ndarray) -> float:
    """Bytes a row of an ideal static code for each column."""
    bits = 0.0
    for column in rows.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        bits -= float((share * np.log2(share)).sum())
    return bits / 8


def _flat(scored: Scored) -> np.ndarray:
    return scored.hidden_VQPH.reshape(-1, scored.hidden_VQPH.shape[-1])
