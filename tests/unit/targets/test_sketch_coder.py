"""The entropy coder of the sketch's integers.

Axes: M row, R sketch dimension.
"""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.targets.fit_coder import fit_coder
from storage_schemas.errors import CacheCorruptError
from storage_schemas.sketch_coder import (
    NUM_CLASSES,
    NUM_TABLES,
    TOP,
    SketchCoder,
    decode_sketch,
    encode_sketch,
    num_lanes,
)


def integers(rng, num_rows, scales):
    """Normal integers whose rows differ in scale, as a teacher's certain and uncertain ones do."""
    row_scale = np.exp(0.4 * rng.standard_normal((num_rows, 1)))
    rows = np.rint(rng.standard_normal((num_rows, len(scales))) * scales * row_scale)
    return rows.astype(np.int16)


SCALES = np.geomspace(80, 0.1, 40)
CODER = fit_coder(integers(np.random.default_rng(0), 2000, SCALES))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_rows=st.sampled_from([0, 1, 2, 15, 16, 17, 100, 333]),
    wild=st.floats(0, 1),
)
def test_any_integers_come_back_whatever_the_coder_was_fitted_to(seed, num_rows, wild):
    rng = np.random.default_rng(seed)
    rows = integers(rng, num_rows, SCALES)
    anything = rng.integers(-32768, 32768, rows.shape, dtype=np.int16)
    rows = np.where(rng.random(rows.shape) < wild, anything, rows)
    coded = encode_sketch(rows, CODER)
    np.testing.assert_array_equal(decode_sketch(coded, num_rows, CODER), rows)
    assert encode_sketch(rows, CODER).tobytes() == coded.tobytes()


def test_a_column_of_one_bit_worked_by_hand():
    # One column, one table for it: 0 half of the time, +-1 a quarter each; +-1 is the table's
    # outermost symbol, so its value is also listed (6 bytes). 32 rows of zeros cost 32 bits: two
    # lanes of 16 rows, one bit a row, so each state ends 16 bits longer than it began, which is
    # one word each; with header (8) and states (8) that is 20 bytes.
    frequency = np.zeros((NUM_TABLES, 2 * TOP + 1), np.uint16)
    frequency[:, TOP] = 2048
    frequency[:, [TOP - 1, TOP + 1]] = 1024
    coder = SketchCoder(
        shift_R=np.zeros(1, np.uint8),
        weight_R=np.zeros(1, np.int32),
        mean_R=np.zeros(1, np.int32),
        table_RG=np.zeros((1, NUM_CLASSES), np.uint8),
        frequency_BA=frequency,
    )
    assert num_lanes(32) == 2
    zeros = np.zeros((32, 1), np.int16)
    assert len(encode_sketch(zeros, coder)) == 8 + 2 * 4 + 2 * 2
    one = zeros.copy()
    one[5] = 1
    assert len(encode_sketch(one, coder)) in (8 + 2 * 4 + 2 * 2 + 6, 8 + 2 * 4 + 3 * 2 + 6)
    np.testing.assert_array_equal(decode_sketch(encode_sketch(one, coder), 32, coder), one)


def entropy(rows):
    """Bytes a row of a static code that knows each column's own frequencies."""
    bits = 0.0
    for column in rows.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        bits -= float((share * np.log2(share)).sum())
    return bits / 8


def test_rows_of_different_scale_cost_less_than_the_entropy_of_the_columns():
    scales = np.geomspace(10, 0.2, 300)
    rng = np.random.default_rng(1)
    coder = fit_coder(integers(rng, 4000, scales))
    rows = integers(rng, 4000, scales)
    assert len(encode_sketch(rows, coder)) / len(rows) < entropy(rows)


def test_rows_of_one_scale_cost_hardly_more_than_the_entropy_of_the_columns():
    scales = np.geomspace(10, 0.2, 300)
    rng = np.random.default_rng(1)
    fit, rows = (
        np.rint(rng.standard_normal((4000, 300)) * scales).astype(np.int16) for _ in range(2)
    )
    coded = len(encode_sketch(rows, fit_coder(fit))) / len(rows)
    assert coded < 1.02 * entropy(rows) + 0.5


def test_frequencies_fill_their_tables_whatever_is_fitted():
    for rows in (
        np.zeros((50, 3), np.int16),
        np.full((50, 2), 32767, np.int16),
        np.arange(100, dtype=np.int16)[:, None],
        integers(np.random.default_rng(2), 3, SCALES),
    ):
        coder = fit_coder(rows)  # its own checks say the rest
        np.testing.assert_array_equal(
            decode_sketch(encode_sketch(rows, coder), len(rows), coder), rows
        )


@pytest.mark.parametrize("damage", ["cut", "longer", "words", "state"])
def test_damage_is_an_error_or_other_integers_never_a_crash(damage):
    rows = integers(np.random.default_rng(3), 200, SCALES)
    coded = encode_sketch(rows, CODER)
    if damage == "cut":
        broken = coded[:-2]
    elif damage == "longer":
        broken = np.append(coded, np.uint8(0))
    else:
        broken = coded.copy()
        broken[12 if damage == "state" else -40] ^= 1
    if damage in ("cut", "longer"):
        with pytest.raises(CacheCorruptError, match=r"sketch: expected \d+ bytes"):
            decode_sketch(broken, 200, CODER)
        return
    with suppress(CacheCorruptError):
        assert not np.array_equal(decode_sketch(broken, 200, CODER), rows)
