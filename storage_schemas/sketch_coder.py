"""The sketch's integers as bytes: static tables, chosen by column and by the row's own activity.

An asymmetric numeral system (Duda 2013, in the form rANS) with 32-bit states, 16-bit words and
frequencies out of 4096. Axes: M row, R sketch dimension, G activity class, B table, A symbol
(-63 .. 63). docs/format.md has the decoder in words; integers alone decide, so that every machine
reads the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import CacheCorruptError

PRECISION = 12
NUM_CLASSES = 16
NUM_TABLES = 64
TOP = 63  # symbols are -TOP .. TOP
_MEMORY, _CLASS_WIDTH = 6, 13  # shifts: activity forgets a 64th a column; 8192 a class
_ROWS_PER_LANE, _MAX_LANES = 16, 4096
_LOW = np.uint32(1 << 16)
_SLOTS = 1 << PRECISION

Sketch = NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchCoder:
    """What the coder must know beside the integers; fitted once, by the calibration.

    A value q of column r is a symbol q >> shift_R[r] and as many raw low bits. The row's activity
    begins at 0; after each column it gains weight_R[r] |symbol| - mean_R[r] and loses a 64th. Its
    class names, by table_RG, the row of frequency_BA that codes the symbol. Frequencies add up to
    4096 a table; a table's outermost symbols stand for themselves and all beyond.
    """

    shift_R: NDArray[np.uint8]
    weight_R: NDArray[np.int32]
    mean_R: NDArray[np.int32]
    table_RG: NDArray[np.uint8]
    frequency_BA: NDArray[np.uint16]

    def __post_init__(self) -> None:
        rank = len(self.shift_R)
        assert self.weight_R.shape == self.mean_R.shape == (rank,), "one number a column"
        assert self.table_RG.shape == (rank, NUM_CLASSES), "a table for each column and class"
        assert self.frequency_BA.shape == (NUM_TABLES, 2 * TOP + 1), "a frequency a symbol"
        assert (self.frequency_BA.sum(1, dtype=np.int64) == _SLOTS).all(), "frequencies fill 4096"

    @property
    def bound_B(self) -> NDArray[np.int32]:
        """The outermost symbol of each table."""
        return (self.frequency_BA[:, TOP:] > 0).sum(1, dtype=np.int32) - 1


def encode_sketch(sketch_MR: Sketch, coder: SketchCoder) -> NDArray[np.uint8]:
    """The rows as bytes: header, states, words, and the values that no symbol stands for."""
    num_rows, rank = sketch_MR.shape
    assert rank == len(coder.shift_R), "a sketch of another basis"
    if not num_rows:
        return np.empty(0, np.uint8)
    symbol_RM, table_RM, is_beyond_RM = _symbols(sketch_MR, coder)
    start_BA = _starts(coder.frequency_BA)
    column_RM = symbol_RM + TOP
    frequency_RM = coder.frequency_BA[table_RM, column_RM].astype(np.uint32)
    start_RM = start_BA[table_RM, column_RM]
    low_RM = (sketch_MR.T & ((1 << coder.shift_R.astype(np.int16)) - 1)[:, None]).astype(np.uint32)
    state_L = np.full(num_lanes(num_rows), _LOW, np.uint32)
    words: list[NDArray[np.uint16]] = []
    for rows in reversed(_rounds(num_rows)):
        lanes = state_L[: rows.stop - rows.start]
        for r in range(rank - 1, -1, -1):
            if shift := int(coder.shift_R[r]):
                width = np.uint32(_SLOTS >> shift)
                _push(lanes, words, width, low_RM[r, rows] * width)
            _push(lanes, words, frequency_RM[r, rows], start_RM[r, rows])
    beyond_N2 = np.argwhere(is_beyond_RM.T)
    places = (beyond_N2[:, 0] * rank + beyond_N2[:, 1]).astype(np.uint32)
    values = sketch_MR[beyond_N2[:, 0], beyond_N2[:, 1]]
    stream = np.concatenate([np.empty(0, np.uint16), *words[::-1]])
    header = np.array([len(stream), len(places)], np.uint32)
    parts = (header, state_L, places, stream, values)
    return np.frombuffer(b"".join(part.tobytes() for part in parts), np.uint8)


def decode_sketch(data: NDArray[np.uint8], num_rows: int, coder: SketchCoder) -> Sketch:
    """The rows [M, R] that `encode_sketch` was given."""
    rank = len(coder.shift_R)
    sketch_RM = np.zeros((rank, num_rows), np.int16)
    if not num_rows:
        return sketch_RM.T
    lanes = num_lanes(num_rows)
    num_words, num_beyond = (
        np.frombuffer(data[:8], np.uint32).tolist() if len(data) >= 8 else (0, 0)
    )
    expected = 8 + 4 * lanes + 2 * num_words + 6 * num_beyond
    if len(data) != expected:
        raise CacheCorruptError(f"sketch: expected {expected} bytes, got {len(data)}")
    head = np.frombuffer(data[8 : 8 + 4 * (lanes + num_beyond)], np.uint32)
    tail = np.frombuffer(data[8 + 4 * (lanes + num_beyond) :], np.uint16)
    _decode_columns(sketch_RM, coder, head[:lanes].copy(), tail[:num_words])
    places, values = head[lanes:], tail[num_words:].view(np.int16)
    if len(places) and int(places.max()) >= num_rows * rank:
        raise CacheCorruptError("sketch: expected values inside its rows, got one outside")
    sketch_RM[places % rank, places // rank] = values
    return sketch_RM.T


def num_lanes(num_rows: int) -> int:
    """Interleaved states of a sketch; row m belongs to state m modulo this."""
    return min(_MAX_LANES, -(-num_rows // _ROWS_PER_LANE))


def activity_class(activity: NDArray[np.int32]) -> NDArray[np.int32]:
    """Which of the 16 classes an activity belongs to."""
    return np.minimum(np.maximum((activity >> _CLASS_WIDTH) + NUM_CLASSES // 2, 0), NUM_CLASSES - 1)


def next_activity(
    activity: NDArray[np.int32], symbol: NDArray[np.int32], weight: np.int32, mean: np.int32
) -> NDArray[np.int32]:
    """The activity after a column."""
    return activity + (weight * np.abs(symbol) - mean) - (activity >> _MEMORY)


def _decode_columns(
    sketch_RM: Sketch, coder: SketchCoder, state_L: NDArray[np.uint32], words: NDArray[np.uint16]
) -> None:
    packed, symbol_of = _slot_tables(coder)
    table_RG = coder.table_RG.astype(np.int32) << PRECISION
    mask = np.uint32(_SLOTS - 1)
    read = 0
    words = np.concatenate(
        [words, np.zeros(len(state_L), np.uint16)]
    )  # a torn stream ends in zeros
    for rows in _rounds(sketch_RM.shape[1]):
        state = state_L[: rows.stop - rows.start]
        activity = np.zeros(len(state), np.int32)
        for r in range(len(sketch_RM)):
            slot: NDArray[np.int32] = table_RG[r][activity_class(activity)]
            slot += (state & mask).astype(np.int32)
            symbol: NDArray[np.int32] = symbol_of[slot]
            both: NDArray[np.uint32] = packed[slot]
            read += _pop(state, both, words[read:])
            activity = next_activity(activity, symbol, coder.weight_R[r], coder.mean_R[r])
            value = symbol
            if shift := int(coder.shift_R[r]):
                width = _SLOTS >> shift
                low = (state & mask) // np.uint32(width)
                read += _pop(state, np.uint32(width << 16) | ((state & mask) % width), words[read:])
                value = (symbol << shift) | low.astype(np.int32)
            sketch_RM[r, rows] = value
    if read > len(words) - len(state_L) or (state_L != _LOW).any():
        raise CacheCorruptError("sketch: expected its words to end with its rows, got another end")


def _pop(state_L: NDArray[np.uint32], both_L: NDArray[np.uint32], words: NDArray[np.uint16]) -> int:
    """One symbol off each state; both_L = frequency << 16 | (slot - start). Words read."""
    state_L >>= np.uint32(PRECISION)
    state_L *= both_L >> np.uint32(16)
    state_L += both_L & np.uint32(0xFFFF)
    (hungry,) = np.nonzero(state_L < _LOW)
    count = len(hungry)
    if count > len(words):
        raise CacheCorruptError("sketch: expected more words, got their end")
    if count:
        state_L[hungry] = (state_L[hungry] << np.uint32(16)) | words[:count]
    return count


def _push(
    state_L: NDArray[np.uint32],
    words: list[NDArray[np.uint16]],
    frequency: NDArray[np.uint32] | np.uint32,
    start_L: NDArray[np.uint32],
) -> None:
    """One symbol on each state; full states first give up a word."""
    limit = np.asarray(frequency, np.uint64) << np.uint64(32 - PRECISION)
    (full,) = np.nonzero(state_L >= limit)
    if len(full):
        words.append((state_L[full] & np.uint32(0xFFFF)).astype(np.uint16))
        state_L[full] >>= np.uint32(16)
    quotient, rest = np.divmod(state_L, frequency)
    state_L[:] = (quotient << np.uint32(PRECISION)) + rest + start_L


def _symbols(
    sketch_MR: Sketch, coder: SketchCoder
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.bool_]]:
    """Symbol and table of every value, column by column, and which values lie at or beyond them."""
    num_rows, rank = sketch_MR.shape
    bound_B = coder.bound_B
    symbol_RM = np.empty((rank, num_rows), np.int32)
    table_RM = np.empty((rank, num_rows), np.uint8)
    is_beyond_RM = np.empty((rank, num_rows), np.bool_)
    activity = np.zeros(num_rows, np.int32)
    for r in range(rank):
        table_RM[r] = coder.table_RG[r][activity_class(activity)]
        bound: NDArray[np.int32] = bound_B[table_RM[r]]
        whole = (sketch_MR[:, r] >> int(coder.shift_R[r])).astype(np.int32)
        is_beyond_RM[r] = np.abs(whole) >= bound
        symbol_RM[r] = np.clip(whole, -bound, bound)
        activity = next_activity(activity, symbol_RM[r], coder.weight_R[r], coder.mean_R[r])
    return symbol_RM, table_RM, is_beyond_RM


def _rounds(num_rows: int) -> list[slice]:
    lanes = num_lanes(num_rows)
    return [slice(at, min(at + lanes, num_rows)) for at in range(0, num_rows, lanes)]


def _starts(frequency_BA: NDArray[np.uint16]) -> NDArray[np.uint32]:
    ends = frequency_BA.cumsum(1, dtype=np.uint32)
    return ends - frequency_BA.astype(np.uint32)


def _slot_tables(coder: SketchCoder) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """For each table and slot: frequency << 16 | (slot - start), and the symbol; both flat."""
    frequency_BA = coder.frequency_BA
    start_BA = _starts(frequency_BA)
    symbols = np.arange(-TOP, TOP + 1, dtype=np.int32)
    slots = np.arange(_SLOTS, dtype=np.uint32)
    packed: list[NDArray[np.uint32]] = []
    symbol_of: list[NDArray[np.int32]] = []
    for frequency_A, start_A in zip(frequency_BA, start_BA, strict=True):
        packed.append(
            (np.repeat(frequency_A, frequency_A).astype(np.uint32) << np.uint32(16))
            | (slots - np.repeat(start_A, frequency_A))
        )
        symbol_of.append(np.repeat(symbols, frequency_A))
    return np.concatenate(packed), np.concatenate(symbol_of)
