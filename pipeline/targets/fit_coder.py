"""Fitting the sketch's entropy coder to the integers of the calibration.

Axes: N calibration row, R sketch dimension, G activity class, B table, A symbol.
"""

import numpy as np
from numpy.typing import NDArray

from storage_schemas.sketch_coder import (
    NUM_CLASSES,
    NUM_TABLES,
    PRECISION,
    TOP,
    Sketch,
    SketchCoder,
    activity_class,
    next_activity,
)

_SYMBOL_RMS = 8.0  # beyond it the low bits are noise, and go raw
_PRIOR_ROWS = 16.0  # a class with few rows leans on its column, a table on a Laplace distribution
_BEYOND_BITS = 48.0  # what a value costs that no symbol stands for

Float64s = NDArray[np.float64]


def fit_coder(sketch_NR: Sketch) -> SketchCoder:
    """Tables by scale: every (column, class) takes the table of its own root mean square.

    Pooling by scale keeps 64 tables in all, so that a few thousand rows suffice at any rank.
    """
    rms_R = np.sqrt((sketch_NR.astype(np.float64) ** 2).mean(0))
    shift_R = np.ceil(np.log2(np.maximum(rms_R / _SYMBOL_RMS, 1.0))).astype(np.uint8)
    symbol_RN = np.clip(sketch_NR.T >> shift_R.astype(np.int16)[:, None], -TOP, TOP).astype(
        np.int32
    )
    weight_R = np.rint(1024 / (symbol_RN.std(1) + 0.3)).astype(np.int32)
    mean_R = np.rint(weight_R * np.abs(symbol_RN).mean(1)).astype(np.int32)
    class_RN = _classes(symbol_RN, weight_R, mean_R)
    rms_RG = _rms(symbol_RN, class_RN)
    lowest, highest = float(np.log(rms_RG.min())), float(np.log(rms_RG.max())) + 1e-9
    edges: Float64s = np.linspace(lowest, highest, NUM_TABLES + 1)
    table_RG = np.digitize(np.log(rms_RG), edges[1:-1]).astype(np.uint8)
    counts_BA = np.zeros((NUM_TABLES, 2 * TOP + 1))
    table_RN = np.take_along_axis(table_RG, class_RN, axis=1)
    np.add.at(counts_BA, (table_RN, symbol_RN + TOP), 1.0)
    scale_B = np.exp((edges[:-1] + edges[1:]) / 2)
    return SketchCoder(
        shift_R=shift_R,
        weight_R=weight_R,
        mean_R=mean_R,
        table_RG=table_RG,
        frequency_BA=np.stack(
            [_frequencies(counts, rms) for counts, rms in zip(counts_BA, scale_B, strict=True)]
        ),
    )


def _classes(
    symbol_RN: NDArray[np.int32], weight_R: NDArray[np.int32], mean_R: NDArray[np.int32]
) -> NDArray[np.int32]:
    class_RN = np.empty_like(symbol_RN)
    activity = np.zeros(symbol_RN.shape[1], np.int32)
    for r, symbol in enumerate(symbol_RN):
        class_RN[r] = activity_class(activity)
        activity = next_activity(activity, symbol, weight_R[r], mean_R[r])
    return class_RN


def _rms(symbol_RN: NDArray[np.int32], class_RN: NDArray[np.int32]) -> Float64s:
    """Root mean square of each column in each class, leaning on the column's own."""
    square_RN = symbol_RN.astype(np.float64) ** 2
    sums, rows = (np.zeros((len(symbol_RN), NUM_CLASSES)) for _ in range(2))
    column_R1 = np.arange(len(symbol_RN))[:, None]
    np.add.at(sums, (column_R1, class_RN), square_RN)
    np.add.at(rows, (column_R1, class_RN), 1.0)
    prior_R1 = square_RN.mean(1, keepdims=True) + 1e-3
    return np.sqrt((sums + _PRIOR_ROWS * prior_R1) / (rows + _PRIOR_ROWS))


def _frequencies(counts_A: Float64s, rms: float) -> NDArray[np.uint16]:
    """Frequencies out of 4096, symmetric, with the outermost symbol that costs least."""
    size = np.arange(TOP + 1)
    # two-sided geometric with this mean square
    square = rms**2
    ratio = (square + 1 - np.sqrt(2 * square + 1)) / square
    prior = ratio**size * np.where(size == 0, 1.0, 2.0)
    counts = counts_A[TOP:].copy()
    counts[1:] += counts_A[:TOP][::-1]
    counts += _PRIOR_ROWS * prior / prior.sum()
    best, cheapest = np.zeros(2 * TOP + 1, np.uint16), np.inf
    for bound in range(1, TOP + 1):
        folded = np.append(counts[:bound], counts[bound:].sum())
        frequency = _quantized(folded / folded.sum())
        bits = PRECISION - np.log2(frequency)
        cost = float(folded @ bits) + folded[-1] * _BEYOND_BITS
        if cost < cheapest:
            cheapest = cost
            best = np.zeros(2 * TOP + 1, np.uint16)
            best[TOP - bound : TOP + bound + 1] = np.concatenate((frequency[:0:-1], frequency))
    return best


def _quantized(share: Float64s) -> NDArray[np.uint16]:
    """Frequencies of 0, 1, 2 ...; each but the first stands for both signs, and counts twice."""
    slots = 1 << PRECISION
    spare = slots - 2 * len(share) + 1  # after one slot for every symbol
    frequency = 1 + np.floor(share * spare / np.where(np.arange(len(share)) == 0, 1.0, 2.0))
    frequency[0] = slots - 2 * frequency[1:].sum()
    return frequency.astype(np.uint16)
