"""The NumPy expander is the torch one, over shapes, steps and temperatures."""

import numpy as np
import pytest
import torch

from pipeline.targets.expand import expand_sketch
from pipeline.targets.sketch import SketchDecoder
from pipeline.targets.sketch_rows import sketch_rows
from storage_schemas.basis import Basis

_CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # float32, other orders of summation


def basis_of(rng: np.random.Generator, rank: int, vocab_size: int) -> Basis:
    return Basis(
        mean_H=np.zeros(rank, np.float32),
        encode_HR=np.zeros((rank, rank), np.float32),
        scale_R=np.ones(rank, np.float32),
        decode_RV=rng.normal(size=(rank, vocab_size)).astype(np.float16),
        base_V=rng.normal(size=vocab_size).astype(np.float32),
        bias_V=rng.random(vocab_size, dtype=np.float32),
        step=0.1,
        temperature=2.0,
        coder=None,
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("rows", "rank", "vocab_size"), [(1, 3, 7), (5, 12, 507), (2, 4, 40_000)])
def test_both_expanders_give_the_same_rows(rows, rank, vocab_size, temperature):
    rng = np.random.default_rng(rank)
    basis = basis_of(rng, rank, vocab_size)
    sketch_MR = rng.integers(-20, 20, (rows, rank)).astype(np.int16)
    logsumexp_M = rng.normal(9, 2, rows).astype(np.float32)
    gold_id_M = rng.integers(0, vocab_size, rows).astype(np.int32)
    gold_id_M[-1] = vocab_size  # outside the kept columns
    gold_logit_M = rng.normal(size=rows).astype(np.float32)
    got_MV = sketch_rows(
        basis, sketch_MR, logsumexp_M, gold_id_M, gold_logit_M, temperature=temperature
    )
    want_MV = expand_sketch(
        SketchDecoder.of(basis, torch.device("cpu")),
        torch.from_numpy(sketch_MR),
        torch.from_numpy(logsumexp_M),
        torch.from_numpy(gold_id_M).long(),
        torch.from_numpy(gold_logit_M),
        temperature=temperature,
    )
    torch.testing.assert_close(torch.from_numpy(got_MV), want_MV, **_CLOSE)


def test_no_rows_give_no_rows():
    basis = basis_of(np.random.default_rng(0), 3, 7)
    none, ids = np.empty(0, np.float32), np.empty(0, np.int32)
    rows_MV = sketch_rows(basis, np.empty((0, 3), np.int16), none, ids, none, temperature=2.0)
    assert rows_MV.shape == (0, 7)
