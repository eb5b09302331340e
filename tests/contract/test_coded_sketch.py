"""The coded sketch, read by a decoder written from docs/format.md alone, one integer at a time."""

import struct

import numpy as np
import pytest

from pipeline.targets.fit_coder import fit_coder
from storage_schemas.sketch_coder import encode_sketch


def read_plainly(data: bytes, num_rows: int, arrays: dict[str, list]) -> list[list[int]]:
    rank = len(arrays["coder_shift"])
    lanes = min(4096, -(-num_rows // 16))
    num_words, num_listed = struct.unpack_from("<2I", data, 0)
    x = list(struct.unpack_from(f"<{lanes}I", data, 8))
    places = struct.unpack_from(f"<{num_listed}I", data, 8 + 4 * lanes)
    at = 8 + 4 * (lanes + num_listed)
    words = iter(struct.unpack_from(f"<{num_words}H", data, at))
    listed = struct.unpack_from(f"<{num_listed}h", data, at + 2 * num_words)

    def step(lane: int, f: int, start: int) -> None:
        slot = x[lane] & 4095
        x[lane] = f * (x[lane] >> 12) + slot - start
        if x[lane] < 65536:
            x[lane] = x[lane] << 16 | next(words)

    rows = [[0] * rank for _ in range(num_rows)]
    for first in range(0, num_rows, lanes):
        part = range(first, min(first + lanes, num_rows))
        activity = dict.fromkeys(part, 0)
        for r in range(rank):
            for m in part:
                kind = max(0, min(15, (activity[m] >> 13) + 8))
                frequencies = arrays["coder_frequency"][arrays["coder_table"][r][kind]]
                slot, start, s = x[m - first] & 4095, 0, 0
                while slot >= start + frequencies[s]:
                    start += frequencies[s]
                    s += 1
                symbol = s - 63
                step(m - first, frequencies[s], start)
                gained = arrays["coder_weight"][r] * abs(symbol) - arrays["coder_mean"][r]
                activity[m] += gained - (activity[m] >> 6)
                rows[m][r] = symbol
            b = arrays["coder_shift"][r]
            for m in part if b else ():
                low, f = (x[m - first] & 4095) >> (12 - b), 4096 >> b
                step(m - first, f, low * f)
                rows[m][r] = rows[m][r] << b | low
    for place, value in zip(places, listed, strict=True):
        rows[place // rank][place % rank] = value
    assert set(x) == {65536}
    assert next(words, None) is None
    return rows


@pytest.mark.parametrize("num_rows", [1, 17, 150])
def test_the_pages_words_are_enough_to_read_a_sketch(num_rows):
    rng = np.random.default_rng(num_rows)
    scales = np.geomspace(90, 0.1, 24)
    fit, rows = (
        np.rint(rng.standard_t(3, (count, 24)) * scales).clip(-32767, 32767).astype(np.int16)
        for count in (800, num_rows)
    )
    coder = fit_coder(fit)
    assert coder.shift_R.any()  # raw low bits are read, too
    arrays = {
        "coder_shift": coder.shift_R.tolist(),
        "coder_weight": coder.weight_R.tolist(),
        "coder_mean": coder.mean_R.tolist(),
        "coder_table": coder.table_RG.tolist(),
        "coder_frequency": coder.frequency_BA.tolist(),
    }
    data = encode_sketch(rows, coder).tobytes()
    assert read_plainly(data, num_rows, arrays) == rows.tolist()
