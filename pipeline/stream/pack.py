"""Packing: several short views in one row, so that fewer tokens of a batch are padding.

Axes: E view.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage_schemas.examples import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where each view of a micro-batch lies: its row, and its first place in it."""

    row_E: Ints
    start_E: Ints
    num_rows: int
    row_length: int

    @property
    def order_E(self) -> list[int]:
        """The views in order of row and place, as a batch counts its examples."""
        return np.lexsort((self.start_E, self.row_E)).tolist()


def pack(lengths: Sequence[int], capacity: int) -> Packing:
    """Whole views in rows of at most `capacity` tokens, as few tokens in all as is found.

    Of all row lengths up to the capacity, each filled longest view first into the first row with
    room, the one with the fewest tokens, padding included; of equals the shortest rows. So packing
    never costs more than a row for each view. Views of whole blocks start at whole blocks.
    """
    assert lengths, "no view to pack"
    assert min(lengths) > 0, f"a view has no tokens: {lengths}"
    assert max(lengths) <= capacity, f"{lengths} do not fit into {capacity}"
    step, fewest = math.gcd(*lengths), sum(lengths)
    best: Packing | None = None
    for limit in range(max(lengths), capacity + 1, step):
        packing = _first_fit(lengths, limit)
        if best is None or _size(packing) < _size(best):
            best = packing
        if _size(best) == fewest:
            break
    assert best is not None
    return best


def side_by_side(lengths: Sequence[int]) -> Packing:
    """A row for each view."""
    num_views = len(lengths)
    return Packing(
        row_E=np.arange(num_views, dtype=np.int32),
        start_E=np.zeros(num_views, np.int32),
        num_rows=num_views,
        row_length=max(lengths),
    )


def _size(packing: Packing) -> int:
    return packing.num_rows * packing.row_length


def _first_fit(lengths: Sequence[int], limit: int) -> Packing:
    row_E, start_E = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
    filled: list[int] = []
    for e in sorted(range(len(lengths)), key=lambda e: -lengths[e]):
        row = next((r for r, n in enumerate(filled) if n + lengths[e] <= limit), len(filled))
        if row == len(filled):
            filled.append(0)
        row_E[e], start_E[e] = row, filled[row]
        filled[row] += lengths[e]
    return Packing(row_E=row_E, start_E=start_E, num_rows=len(filled), row_length=max(filled))
