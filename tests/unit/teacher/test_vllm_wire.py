"""What goes to vLLM's workers and what comes back: bit for bit, without vLLM."""

import numpy as np
import pytest
import torch
from tiny import assert_same

from pipeline.teacher.keep import Keep, KeepChunks, KeepHidden, KeepTokens, RowKeeper
from pipeline.teacher.vllm_plugin.keep_file import read_keep, write_keep
from pipeline.teacher.vllm_plugin.wire import pack, unpack, width
from storage_schemas.basis import Basis

HIDDEN, VOCAB, KEPT_VOCAB, RANK = 12, 40, 37, 4


def make_basis() -> Basis:
    rng = np.random.default_rng(0)
    encode_HR = rng.normal(size=(HIDDEN, RANK)).astype(np.float32)
    return Basis(
        mean_H=rng.normal(size=HIDDEN).astype(np.float32),
        encode_HR=encode_HR,
        scale_R=np.ones(RANK, np.float32),
        decode_RV=rng.normal(size=(RANK, KEPT_VOCAB)).astype(np.float16),
        base_V=rng.normal(size=KEPT_VOCAB).astype(np.float32),
        bias_V=np.ones(KEPT_VOCAB, np.float32),
        step=0.1,
        temperature=2.0,
        coder=None,
    )


KEEPS: dict[str, Keep] = {
    "chunks": KeepChunks(),
    "hidden": KeepHidden(),
    "tokens": KeepTokens(k=5, temperatures=(1.0, 2.0), vocab_size=KEPT_VOCAB),
    "sketch": KeepTokens(k=5, temperatures=(1.0,), vocab_size=KEPT_VOCAB, basis=make_basis()),
    "everything": KeepTokens(k=99, temperatures=(1.0,), vocab_size=KEPT_VOCAB),
}


def rows_of(keep: Keep, num_rows: int):
    generator = torch.Generator().manual_seed(0)
    hidden_MH = torch.randn(num_rows, HIDDEN, generator=generator)
    logits_MV = 9 * torch.randn(num_rows, VOCAB, generator=generator)
    if num_rows:
        logits_MV[-1, 0] = torch.nan
    gold_M = torch.randint(VOCAB, (num_rows,), generator=generator)
    return RowKeeper.of(keep, torch.device("cpu"))(hidden_MH, logits_MV, gold_M)


@pytest.mark.parametrize("num_rows", [0, 1, 7])
@pytest.mark.parametrize("name", KEEPS)
def test_kept_rows_come_back_bit_for_bit(name, num_rows):
    keep = KEEPS[name]
    rows = rows_of(keep, num_rows)
    table_MW = pack(rows)
    assert table_MW.dtype == np.float32
    assert table_MW.shape == (num_rows, width(keep, hidden_size=HIDDEN))
    assert_same(unpack(table_MW, keep), rows)


def test_the_largest_id_and_sketch_that_are_sent_are_exact():
    rows = rows_of(KEEPS["sketch"], 2)
    rows.ids_MK[:] = 2**24 - 1
    rows.sketch_MR[:] = np.array([[-32767], [32767]], np.int16)
    assert_same(unpack(pack(rows), KEEPS["sketch"]), rows)


def test_an_id_that_float32_cannot_hold_is_refused():
    rows = rows_of(KEEPS["tokens"], 1)
    rows.ids_MK[:] = 2**24
    with pytest.raises(AssertionError, match="an id that float32 cannot hold"):
        pack(rows)


def test_a_table_that_was_kept_otherwise_is_refused():
    table_MW = pack(rows_of(KEEPS["tokens"], 3))
    with pytest.raises(AssertionError, match="a table of other columns"):
        unpack(table_MW, KEEPS["sketch"])


@pytest.mark.parametrize("name", KEEPS)
def test_a_worker_keeps_what_this_process_would(name, tmp_path):
    keep = KEEPS[name]
    settings, arrays = write_keep(keep, tmp_path)
    got = read_keep(settings, arrays)
    assert_same(rows_of(got, 5), rows_of(keep, 5))
    assert (arrays is None) == (name != "sketch")
    if arrays is not None:
        assert_same(got.basis, keep.basis)
