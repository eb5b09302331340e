"""Views to one batch, against one that is filled cell by cell."""

import numpy as np
import pytest

from pipeline.diffusion.corrupt import corrupt
from pipeline.stream.collate import View, collate
from storage_schemas.batch import Batch
from storage_schemas.examples import Pair
from storage_schemas.targets import DenseTargets, KeptTargets, Targets

VOCAB = 11
NAMES = {
    "dense": ["logits_MV"],
    "top_k": ["ids_MK", "logits_MK", "logsumexp_MJ", "gold_logp_M", "sketch_MR"],
}


def _pair(rng: np.random.Generator, name: str, *, is_single: bool) -> Pair:
    """A prompt, then chunks with unaligned tokens between them."""
    prompt = int(rng.integers(1, 5))
    chunks, s, t = [], prompt, 2
    for _ in range(int(rng.integers(1, 6))):
        num_s, num_t = (1, 1) if is_single else rng.integers(1, 4, 2).tolist()
        chunks.append((t, t + num_t, s, s + num_s))
        s, t = s + num_s + int(rng.integers(0, 2)), t + num_t
    length = s + int(rng.integers(0, 4))
    return Pair(
        record_id=name,
        student_ids_S=rng.integers(1, VOCAB, length).astype(np.int32),
        is_target_S=np.arange(length) >= prompt,
        teacher_ids_T=rng.integers(1, VOCAB, t).astype(np.int32),
        chunks_C4=np.array(chunks, np.int32),
    )


def _view(rng: np.random.Generator, i: int, *, kind: str) -> View:
    pair = _pair(rng, f"r{i}", is_single=kind != "chunks")
    corruption = corrupt(pair, seed=i, view=i, eps=1e-3)
    chunk_C = np.flatnonzero(corruption.is_masked_C).astype(np.int32)
    num_rows = int(np.diff(pair.chunks_C4[chunk_C, :2]).sum())
    normal = rng.standard_normal
    tokens = {
        "chunks": None,
        "dense": DenseTargets(logits_MV=normal((num_rows, VOCAB)).astype(np.float32)),
        "top_k": KeptTargets(
            ids_MK=rng.integers(0, VOCAB, (num_rows, 3)).astype(np.int32),
            logits_MK=normal((num_rows, 3)).astype(np.float32),
            logsumexp_MJ=normal((num_rows, 2)).astype(np.float32),
            gold_logp_M=normal(num_rows).astype(np.float32),
            sketch_MR=rng.integers(-9, 9, (num_rows, 4)).astype(np.int16),
            temperatures=(1.0, 2.0),
            vocab_size=VOCAB,
        ),
    }[kind]
    targets = Targets(
        chunk_C=chunk_C,
        pass_C=np.zeros(len(chunk_C), np.int8),
        logp_C=-rng.random(len(chunk_C)).astype(np.float32),
        tokens=tokens,
    )
    return View(pair=pair, corruption=corruption, targets=targets)


def _check_example(batch: Batch, e: int, view: View) -> None:
    """Every cell of one row of a batch, and the masked positions among them."""
    pair, length = view.pair, len(view.pair.student_ids_S)
    chunks = np.flatnonzero(batch.example_C == e)
    np.testing.assert_array_equal(batch.teacher_logp_C[chunks], view.targets.logp_C)
    chunk_of = {
        s: chunk
        for chunk, own in zip(chunks, view.targets.chunk_C, strict=True)
        for s in range(*pair.chunks_C4[own, 2:].tolist())
    }
    masked = iter(batch.chunk_N[batch.example_N == e])
    assert batch.record_ids[e] == pair.record_id
    assert batch.view_E[e] == view.corruption.view
    assert batch.time_E[e] == np.float32(view.corruption.time)
    for s in range(batch.student_ids_BS.shape[1]):
        is_real = s < length
        assert batch.example_BS[e, s] == (e if is_real else -1)
        assert batch.student_ids_BS[e, s] == (pair.student_ids_S[s] if is_real else 0)
        assert batch.is_target_BS[e, s] == (is_real and pair.is_target_S[s])
        assert batch.is_masked_BS[e, s] == (is_real and view.corruption.is_masked_S[s])
        if batch.is_masked_BS[e, s]:
            assert next(masked) == chunk_of.get(s, -1)
    assert next(masked, None) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["chunks", "top_k", "dense"])
def test_every_cell_is_its_views_own(kind, seed):
    rng = np.random.default_rng(seed)
    views = [_view(rng, i, kind=kind) for i in range(6)]
    batch = collate(views, has_tokens=kind != "chunks")
    for b, view in enumerate(views):
        _check_example(batch, b, view)
    assert batch.student_ids_BS.shape[1] == max(len(view.pair.student_ids_S) for view in views)
    assert batch.num_maskable == sum(int(view.pair.is_target_S.sum()) for view in views)


@pytest.mark.parametrize("kind", ["top_k", "dense"])
def test_token_rows_stand_at_their_chunks_student_token(kind):
    rng = np.random.default_rng(7)
    views = [_view(rng, i, kind=kind) for i in range(6)]
    batch = collate(views, has_tokens=True)
    cells = np.argwhere(batch.is_masked_BS).tolist()
    want = [
        ([e, int(view.pair.chunks_C4[chunk, 2])], view, row)
        for e, view in enumerate(views)
        for row, chunk in enumerate(view.targets.chunk_C.tolist())
    ]
    assert [cells[row] for row in batch.row_M.tolist()] == [cell for cell, _, _ in want]
    for row, (_, view, own) in enumerate(want):
        for name in NAMES[kind]:
            got, whole = getattr(batch.tokens, name), getattr(view.targets.tokens, name)
            np.testing.assert_array_equal(got[row], whole[own])
    assert batch.tokens.vocab_size == VOCAB


def test_without_tokens_a_top_k_cache_gives_chunks_alone():
    rng = np.random.default_rng(8)
    views = [_view(rng, i, kind="top_k") for i in range(3)]
    batch = collate(views, has_tokens=False)
    assert batch.tokens is None
    assert batch.row_M is None
    assert len(batch.teacher_logp_C) > 0


def test_views_of_two_kinds_do_not_share_a_batch():
    rng = np.random.default_rng(9)
    views = [_view(rng, 0, kind="top_k"), _view(rng, 1, kind="dense")]
    with pytest.raises(AssertionError, match="of one kind"):
        collate(views, has_tokens=True)


def test_a_view_with_nothing_masked_is_there_without_a_chunk():
    rng = np.random.default_rng(10)
    view = _view(rng, 0, kind="top_k")
    length = len(view.pair.student_ids_S)
    silent = View(
        pair=view.pair,
        corruption=type(view.corruption)(
            view=0,
            time=0.001,
            is_masked_S=np.zeros(length, bool),
            is_masked_T=np.zeros(len(view.pair.teacher_ids_T), bool),
            is_masked_C=np.zeros(len(view.pair.chunks_C4), bool),
        ),
        targets=Targets(
            chunk_C=np.zeros(0, np.int32),
            pass_C=np.zeros(0, np.int8),
            logp_C=np.zeros(0, np.float32),
            tokens=KeptTargets(
                ids_MK=np.zeros((0, 3), np.int32),
                logits_MK=np.zeros((0, 3), np.float32),
                logsumexp_MJ=np.zeros((0, 2), np.float32),
                gold_logp_M=np.zeros(0, np.float32),
                sketch_MR=np.zeros((0, 4), np.int16),
                temperatures=(1.0, 2.0),
                vocab_size=VOCAB,
            ),
        ),
    )
    batch = collate([silent], has_tokens=True)
    assert not batch.is_masked_BS.any()
    assert batch.chunk_N.shape == batch.teacher_logp_C.shape == batch.row_M.shape == (0,)


@pytest.mark.parametrize("kind", ["chunks", "top_k", "dense"])
def test_packed_views_keep_all_that_is_theirs(kind):
    """Each example's tokens, noise, chunks and teacher rows, found again wherever it stands."""
    rng = np.random.default_rng(11)
    views = [_view(rng, i, kind=kind) for i in range(9)]
    longest = max(len(view.pair.student_ids_S) for view in views)
    plain = collate(views, has_tokens=kind != "chunks")
    packed = collate(views, has_tokens=kind != "chunks", capacity=3 * longest)
    assert packed.student_ids_BS.size < plain.student_ids_BS.size
    order = [plain.record_ids.index(record_id) for record_id in packed.record_ids]
    assert sorted(order) == list(range(9))
    for e, old in enumerate(order):
        for name in ("student_ids_BS", "is_target_BS", "is_masked_BS"):
            both = (getattr(x, name)[x.example_BS == i] for x, i in ((packed, e), (plain, old)))
            np.testing.assert_array_equal(*both)
        assert packed.time_E[e] == plain.time_E[old]
        assert packed.view_E[e] == plain.view_E[old]
        for new_part, old_part in zip(_of(packed, e), _of(plain, old), strict=True):
            np.testing.assert_array_equal(new_part, old_part)


def _of(batch: Batch, e: int) -> list[np.ndarray]:
    """One example's chunks, their tokens among its masked positions, and its teacher's rows."""
    chunks = np.flatnonzero(batch.example_C == e)
    masked = np.flatnonzero(batch.example_N == e)
    own_N = batch.chunk_N[masked]
    first_chunk, first_row = (int(x[0]) if len(x) else 0 for x in (chunks, masked))
    parts = [batch.teacher_logp_C[chunks], np.where(own_N < 0, -1, own_N - first_chunk)]
    if batch.tokens is not None:
        rows = np.flatnonzero(np.isin(batch.row_M, masked))
        kind = "dense" if isinstance(batch.tokens, DenseTargets) else "top_k"
        parts += [batch.row_M[rows] - first_row]
        parts += [getattr(batch.tokens, name)[rows] for name in NAMES[kind]]
    return parts
