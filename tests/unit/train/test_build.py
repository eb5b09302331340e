"""Each objective of a recipe is the formula of that name, fed with the right rows.

Axes: B row, S position, N masked position, M masked aligned position, C chunk, V vocabulary.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch.testing import assert_close

from pipeline.config.objective import MaskedNll, ObjectiveConfig
from pipeline.objectives import (
    calm,
    calm_tidal,
    forward_kl,
    gold_logp,
    midrange_weight,
    reverse_calm,
    reverse_kl,
    tidal_kl,
    tidal_lambda,
)
from pipeline.targets.top_k import keep_top_k, logsumexp_at
from pipeline.train.build import (
    StudentAnswer,
    build_distillation,
    student_chunk_logp,
)
from pipeline.train.expand import expander, live_rows
from pipeline.train.tensors import DenseRows, LossRows, as_tensors
from storage_schemas.batch import Batch
from storage_schemas.identity import EvenTail, KeptIdentity
from storage_schemas.targets import DenseTargets, KeptTargets

B, S, V, SHARED = 3, 20, 17, 13
TEMPERATURE = 2.0
EXACT = {"atol": 1e-6, "rtol": 1e-6}  # the same float32 formula on rows gathered another way


OBJECTIVES = ("reverse_calm", "calm", "calm_tidal", "forward_kl", "tidal_kl", "reverse_kl")


def _config(**fields):
    return TypeAdapter(ObjectiveConfig).validate_python(fields)


@pytest.fixture(scope="module")
def views():
    """Spans (start, stop) of the active chunks of each row; the third row has none."""
    return [[(4, 6), (7, 8), (12, 15)], [(3, 4), (4, 5)], []]


@pytest.fixture(scope="module")
def batch(views) -> Batch:
    """Chunks and tokens of the spans; some masked tokens are in no chunk."""
    rng = np.random.default_rng(0)
    chunk_BS = np.full((B, S), -1, np.int32)
    is_masked_BS = np.zeros((B, S), bool)
    is_masked_BS[:, [17, 19]] = True
    spans = [(b, *span) for b, row in enumerate(views) for span in row]
    for c, (b, start, stop) in enumerate(spans):
        chunk_BS[b, start:stop] = c
        is_masked_BS[b, start:stop] = True
    rank_BS = is_masked_BS.cumsum().reshape(B, S) - 1
    return Batch(
        record_ids=("x", "y", "z"),
        view_E=np.zeros(B, np.int32),
        time_E=np.array([0.3, 0.6, 0.9], np.float32),
        student_ids_BS=rng.integers(0, V, (B, S)).astype(np.int32),
        example_BS=np.repeat(np.arange(B, dtype=np.int32), S).reshape(B, S),
        is_target_BS=np.broadcast_to(np.arange(S) >= 3, (B, S)).copy(),
        is_masked_BS=is_masked_BS,
        chunk_N=chunk_BS[is_masked_BS],
        teacher_logp_C=-3 * rng.random(len(spans)).astype(np.float32),
        example_C=np.array([b for b, _, _ in spans], np.int32),
        # a token target a chunk: its first token
        row_M=np.array([rank_BS[b, start] for b, start, _ in spans], np.int32),
        tokens=DenseTargets(
            logits_MV=2 * rng.standard_normal((len(spans), SHARED)).astype(np.float32)
        ),
    )


def _tensors(batch, *, temperature=TEMPERATURE, rows_per_block=1000):
    return as_tensors(batch, temperature=temperature, block_size=4, rows_per_block=rows_per_block)


@pytest.fixture(scope="module")
def rows(batch) -> LossRows:
    return _tensors(batch).rows


@pytest.fixture
def answer(rows) -> StudentAnswer:
    generator = torch.Generator().manual_seed(1)
    logits_NV = 2 * torch.randn(len(rows.target_id_N), V, generator=generator)
    logits_NV.requires_grad_()
    return StudentAnswer(logits_NV=logits_NV, logp_N=gold_logp(logits_NV, rows.target_id_N))


def _places(batch: Batch) -> list[tuple[int, int]]:
    """(b, s) of each row of the student's logits."""
    return [(b, s) for b in range(B) for s in range(S) if batch.is_masked_BS[b, s]]


def _chunk_sums(batch, answer, views):
    places = _places(batch)
    return torch.stack(
        [
            sum(answer.logp_N[places.index((b, s))] for s in range(start, stop))
            for b, spans in enumerate(views)
            for start, stop in spans
        ]
    )


def _token_rows(batch, answer):
    places = _places(batch)
    student = [answer.logits_NV[row, :SHARED] for row in batch.row_M.tolist()]
    time_M = torch.tensor([float(batch.time_E[places[row][0]]) for row in batch.row_M.tolist()])
    return torch.stack(student), torch.from_numpy(batch.tokens.logits_MV), time_M


def test_the_students_chunks_are_the_sums_of_their_own_tokens(batch, rows, answer, views):
    assert_close(student_chunk_logp(answer, rows), _chunk_sums(batch, answer, views), **EXACT)


def test_cross_entropy_alone_has_no_distillation_term():
    assert build_distillation(MaskedNll(), shared_vocab=None) is None


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["calm", "calm_tidal", "reverse_calm", "reverse_calm+tidal"])
def test_a_chunk_objective_is_its_formula(name, progress, batch, rows, answer, views):
    student_BC = _chunk_sums(batch, answer, views)[:, None]
    teacher_BC = torch.from_numpy(batch.teacher_logp_C)[:, None]
    is_active_BC = torch.ones_like(teacher_BC, dtype=torch.bool)
    chunks = (student_BC, teacher_BC, is_active_BC)
    time_B = torch.from_numpy(batch.time_E[batch.example_C])
    share_B = tidal_lambda(progress, time_B, init=0.2, max=0.8, growth="linear")
    tidal = {"lambda_init": 0.2, "lambda_max": 0.8, "growth": "linear"}
    fields = {"type": name.removesuffix("+tidal"), "temperature": 3.0, "weight": 0.5}
    if name == "calm":
        want = calm(*chunks, temperature=3.0)
    elif name == "calm_tidal":
        fields["tidal"] = tidal
        want = calm_tidal(
            *chunks, temperature=3.0, lambda_B=share_B, weight_B=midrange_weight(time_B)
        )
    elif name == "reverse_calm":
        want = reverse_calm(*chunks, temperature=3.0)
    else:
        fields |= {"tidal": tidal, "tidal_against_reverse": True}
        q_s_BC, q_t_BC = (student_BC.detach() / 3).exp(), (teacher_BC / 3).exp()
        mixed_BC = (1 - share_B[:, None]) * q_s_BC + share_B[:, None] * q_t_BC
        want = reverse_calm(student_BC, 3 * mixed_BC.log(), is_active_BC, temperature=3.0)
    distillation = build_distillation(_config(**fields), shared_vocab=None)
    assert (distillation.name, distillation.weight) == (fields["type"], 0.5)
    assert (distillation.normalizer, distillation.temperature) == ("chunks", None)
    got = distillation.term(answer, rows, progress).term
    assert_close(got.total, want.total, **EXACT)
    assert int(got.count) == 5
    (got_grad,) = torch.autograd.grad(got.total, answer.logits_NV, retain_graph=True)
    (want_grad,) = torch.autograd.grad(want.total, answer.logits_NV)
    assert_close(got_grad, want_grad, **EXACT)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "name", ["forward_kl", "tidal_kl", "tidal_kl uniform", "reverse_kl", "reverse_kl+tidal"]
)
def test_a_token_objective_is_its_formula(name, progress, batch, rows, answer):
    student_MV, teacher_MV, time_M = _token_rows(batch, answer)
    both = (student_MV, teacher_MV)
    share_M = tidal_lambda(progress, time_M)
    fields = {"type": name.split()[0].removesuffix("+tidal"), "temperature": TEMPERATURE}
    if name == "forward_kl":
        want = forward_kl(*both, temperature=TEMPERATURE)
    elif name.startswith("tidal_kl"):
        is_uniform = "uniform" in name
        if is_uniform:
            fields["tidal"] = {"timestep_weight": "uniform"}
        weight_M = torch.ones_like(time_M) if is_uniform else midrange_weight(time_M)
        want = tidal_kl(*both, temperature=TEMPERATURE, lambda_M=share_M, weight_M=weight_M)
    elif name == "reverse_kl":
        want = reverse_kl(*both, temperature=TEMPERATURE)
    else:
        fields |= {"tidal": {}, "tidal_against_reverse": True}
        mixed_MV = (1 - share_M[:, None]) * student_MV.detach() + share_M[:, None] * teacher_MV
        want = reverse_kl(student_MV, mixed_MV, temperature=TEMPERATURE)
    distillation = build_distillation(_config(**fields), shared_vocab=SHARED, expand=live_rows)
    assert (distillation.normalizer, distillation.temperature) == ("tokens", TEMPERATURE)
    got = distillation.term(answer, rows, progress).term
    assert_close(got.total, want.total, **EXACT)
    assert int(got.count) == 5
    (got_grad,) = torch.autograd.grad(got.total, answer.logits_NV, retain_graph=True)
    (want_grad,) = torch.autograd.grad(want.total, answer.logits_NV)
    assert_close(got_grad, want_grad, **EXACT)
    assert (got_grad[:, SHARED:] == 0).all()


def test_tidal_moves_from_the_student_to_the_teacher_with_progress(rows, answer):
    """At the start, at t near 1, the target is the student itself: nothing to learn."""
    config = _config(
        type="tidal_kl", tidal={"lambda_init": 0.0, "lambda_max": 1.0, "axes": "training"}
    )
    distillation = build_distillation(config, shared_vocab=SHARED, expand=live_rows)
    values = [
        distillation.term(answer, rows, progress).term.total.item() for progress in (0.0, 0.5, 1.0)
    ]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values[0] < values[1] < values[2]


def _kept(k: int) -> KeptIdentity:
    return KeptIdentity(
        top_k=k,
        logits_dtype="float32",
        temperatures=(1.0, TEMPERATURE),
        vocab_size=SHARED,
        tail=EvenTail(),
    )


def _as_top_k(batch: Batch, k: int) -> Batch:
    logits_MV = torch.from_numpy(batch.tokens.logits_MV)
    ids_MK, kept_MK = keep_top_k(logits_MV, k=k)
    top_k = KeptTargets(
        ids_MK=ids_MK.int().numpy(),
        logits_MK=kept_MK.numpy(),
        logsumexp_MJ=logsumexp_at(logits_MV, [1.0, TEMPERATURE]).numpy(),
        gold_logp_M=np.zeros(len(logits_MV), np.float32),
        sketch_MR=np.zeros((len(logits_MV), 0), np.int16),
        temperatures=(1.0, TEMPERATURE),
        vocab_size=SHARED,
    )
    return Batch(**{n: getattr(batch, n) for n in batch.__slots__ if n != "tokens"}, tokens=top_k)


@pytest.mark.parametrize("name", ["forward_kl", "tidal_kl", "reverse_kl"])
def test_a_cache_of_the_whole_vocabulary_is_the_live_teacher_bit_for_bit(name, batch, rows, answer):
    config = _config(type=name)
    exact = expander(_kept(SHARED), None, torch.device("cpu"))
    cached = _tensors(_as_top_k(batch, SHARED)).rows
    got, want = (
        build_distillation(config, shared_vocab=SHARED, expand=expand)
        .term(answer, x, 0.3)
        .term.total
        for expand, x in ((exact, cached), (live_rows, rows))
    )
    assert torch.equal(got, want)


def test_a_sparse_teacher_keeps_the_kept_tokens_probabilities_at_the_objectives_temperature(
    batch, rows
):
    cached = _tensors(_as_top_k(batch, 4)).rows.teacher
    expand = expander(_kept(4), None, torch.device("cpu"))
    sparse_MV = (expand(cached, TEMPERATURE) / TEMPERATURE).softmax(-1)
    dense_MV = (live_rows(rows.teacher, TEMPERATURE) / TEMPERATURE).softmax(-1)
    ids_MK = cached.ids_MK
    assert_close(sparse_MV.gather(1, ids_MK), dense_MV.gather(1, ids_MK), **EXACT)


@pytest.mark.parametrize(("temperature", "column"), [(1.0, 0), (2.0, 1)])
def test_the_logsumexp_is_that_of_the_objectives_temperature(batch, temperature, column):
    sparse = _as_top_k(batch, 4)
    got = _tensors(sparse, temperature=temperature).rows.teacher.logsumexp_M.numpy()
    np.testing.assert_array_equal(got, sparse.tokens.logsumexp_MJ[:, column])


def _without_teacher(batch: Batch) -> Batch:
    return replace(
        batch,
        chunk_N=np.full_like(batch.chunk_N, -1),
        teacher_logp_C=np.zeros(0, np.float32),
        example_C=np.zeros(0, np.int32),
        row_M=np.zeros(0, np.int32),
        tokens=DenseTargets(logits_MV=np.zeros((0, SHARED), np.float32)),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_without_an_active_chunk_or_token_is_a_differentiable_zero(name, batch, answer):
    distillation = build_distillation(_config(type=name), shared_vocab=SHARED, expand=live_rows)
    got = distillation.term(answer, _tensors(_without_teacher(batch)).rows, 0.5)
    assert int(got.term.count) == 0
    (grad,) = torch.autograd.grad(got.term.total, answer.logits_NV)
    assert got.term.total.item() == 0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("rows_per_block", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_and_measures_of_blocks_add_up_to_those_of_the_batch(
    name, rows_per_block, batch, rows, answer
):
    """No block cuts a chunk, so that a batch may be taken block by block."""
    distillation = build_distillation(_config(type=name), shared_vocab=SHARED, expand=live_rows)
    whole = distillation.term(answer, rows, 0.3)
    blocks = _tensors(batch, rows_per_block=rows_per_block).blocks
    assert len(blocks) > 1
    parts = [
        distillation.term(
            StudentAnswer(
                logits_NV=answer.logits_NV[block.positions], logp_N=answer.logp_N[block.positions]
            ),
            rows.block(block),
            0.3,
        )
        for block in blocks
    ]
    assert_close(sum(part.term.total for part in parts), whole.term.total, **EXACT)
    assert sum(int(part.term.count) for part in parts) == int(whole.term.count)
    for name, term in whole.measures.items():
        total = sum(float(part.measures[name].total) for part in parts if name in part.measures)
        assert total == pytest.approx(float(term.total), rel=1e-6)


def test_measures_are_worked_by_hand():
    """Softened at T = 2, one half is log-likelihood -1.386; clamped is below 2 log 1e-7 = -32.2."""
    rows = LossRows(
        target_id_N=torch.zeros(4, dtype=torch.long),
        time_N=torch.full((4,), 0.5),
        chunk_N=torch.tensor([0, 1, 2, 3]),
        teacher_logp_C=torch.tensor([-1.0, -1.0, -2.0, -40.0]),
        time_C=torch.full((4,), 0.5),
        row_M=torch.zeros(0, dtype=torch.long),
        teacher=None,
    )
    logp_N = torch.tensor([-1.3, -1.5, -33.0, -3.0])
    answer = StudentAnswer(logits_NV=torch.zeros(4, V), logp_N=logp_N)
    tidal = {"axes": "timestep", "lambda_max": 0.8}
    config = _config(type="calm_tidal", temperature=2.0, tidal=tidal)
    measures = build_distillation(config, shared_vocab=None).term(answer, rows, 0.0).measures
    means = {name: float(term.mean()) for name, term in measures.items()}
    assert means == pytest.approx(
        {"clamped_student": 0.25, "clamped_teacher": 0.25, "agreement": 0.75, "lambda": 0.4}
    )


def test_token_agreement_is_the_share_of_equal_favourites(rows, answer):
    teacher_MV = answer.logits_NV.detach()[rows.row_M, :SHARED].clone()
    teacher_MV[1] = -teacher_MV[1]
    told = replace(rows, teacher=DenseRows(logits_MV=teacher_MV))
    distillation = build_distillation(
        _config(type="forward_kl"), shared_vocab=SHARED, expand=live_rows
    )
    measures = distillation.term(answer, told, 0.0).measures
    assert float(measures["agreement"].mean()) == pytest.approx(0.8)
