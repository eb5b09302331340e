"""What leaves a worker: the kept numbers of a request's rows as one float32 table, and back.

Columns: gold_logp, ids (K), logits (K), logsumexp (J), sketch (R), hidden (H). Ids below 2^24 and
16-bit integers are exact in float32.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.teacher.keep import Keep, KeepHidden, KeepTokens, KeptRows

_EXACT = 2**24  # whole numbers that float32 holds


def pack(rows: KeptRows) -> NDArray[np.float32]:
    """The table [M, 1 + 2 K + J + R + H]."""
    assert rows.ids_MK.max(initial=0) < _EXACT, "an id that float32 cannot hold"
    columns = (
        rows.gold_logp_M[:, None],
        rows.ids_MK,
        rows.logits_MK,
        rows.logsumexp_MJ,
        rows.sketch_MR,
        rows.hidden_MH,
    )
    return np.concatenate([column.astype(np.float32) for column in columns], axis=1)


def unpack(table_MW: NDArray[np.float32], keep: Keep) -> KeptRows:
    """The rows again, bit for bit, as `keep` asked for them."""
    k, num_temperatures, rank = _widths(keep)
    hidden_size = table_MW.shape[1] - (1 + 2 * k + num_temperatures + rank)
    is_hidden_kept = isinstance(keep, KeepHidden)
    assert hidden_size > 0 if is_hidden_kept else hidden_size == 0, "a table of other columns"
    gold_M1, ids_MK, logits_MK, logsumexp_MJ, sketch_MR, hidden_MH = np.split(
        table_MW, np.cumsum([1, k, k, num_temperatures, rank]), axis=1
    )
    return KeptRows(
        gold_logp_M=gold_M1[:, 0],
        ids_MK=ids_MK.astype(np.int32),
        logits_MK=logits_MK,
        logsumexp_MJ=logsumexp_MJ,
        sketch_MR=sketch_MR.astype(np.int16),
        hidden_MH=hidden_MH,
    )


def width(keep: Keep, *, hidden_size: int) -> int:
    """Columns of a table."""
    k, num_temperatures, rank = _widths(keep)
    return 1 + 2 * k + num_temperatures + rank + hidden_size * isinstance(keep, KeepHidden)


def _widths(keep: Keep) -> tuple[int, int, int]:
    if not isinstance(keep, KeepTokens):
        return 0, 0, 0
    k = min(keep.k, keep.vocab_size)
    return k, len(keep.temperatures), 0 if keep.basis is None else keep.basis.rank
