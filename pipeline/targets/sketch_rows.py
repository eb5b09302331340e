"""A sketch's rows in NumPy, for looking at a few: `expand.expand_sketch` without torch.

Axes: M position, R sketch dimension, V vocabulary.
"""

import numpy as np
from numpy.typing import NDArray

from storage_schemas.basis import Basis
from storage_schemas.examples import Ints
from storage_schemas.targets import Floats

_COLUMNS = 2**14  # of the decoding matrix that are in float32 at once


def sketch_rows(
    basis: Basis,
    sketch_MR: NDArray[np.int16],
    logsumexp_M: Floats,
    gold_id_M: Ints,
    gold_logit_M: Floats,
    *,
    temperature: float,
) -> Floats:
    """The logits z^ = m - bias / (4 T_s) + s q D that a sketch stands for, T_s the basis's own.

    They are moved so that logsumexp(z / T) is the stored one, and the true token gets its own
    logit; one outside the kept columns (gold_id >= V) is left alone.
    """
    base_V = basis.base_V - basis.bias_V / (4 * basis.temperature)
    scaled_MR = sketch_MR.astype(np.float32) * np.float32(basis.step)
    dense_MV = np.empty((len(sketch_MR), basis.vocab_size), np.float32)
    for start in range(0, basis.vocab_size, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        dense_MV[:, columns] = scaled_MR @ basis.decode_RV[:, columns].astype(np.float32)
    dense_MV += base_V
    dense_MV += temperature * (logsumexp_M - _logsumexp(dense_MV / temperature))[:, None]
    row_M = np.flatnonzero(gold_id_M < basis.vocab_size)
    dense_MV[row_M, gold_id_M[row_M]] = gold_logit_M[row_M]
    return dense_MV


def _logsumexp(scaled_MV: Floats) -> Floats:
    top_M = scaled_MV.max(axis=1)
    return top_M + np.log(np.exp(scaled_MV - top_M[:, None]).sum(axis=1))
