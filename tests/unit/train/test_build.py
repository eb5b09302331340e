"""Each objective of a recipe is the formula of that name, fed with the right rows.

Axes: B example, S position, N masked position, M masked aligned position, C chunk, V vocabulary.
"""

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
from pipeline.train.tensors import as_tensors
from storage_schemas.batch import Batch
from storage_schemas.identity import EvenTail, KeptIdentity
from storage_schemas.targets import DenseTargets, KeptTargets

B, S, V, SHARED = 3, 20, 17, 13
TEMPERATURE = 2.0
EXACT = {"atol": 1e-6, "rtol": 1e-6}  # the same float32 formula on rows gathered another way


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
    is_active_BC = np.zeros((B, 3), bool)
    is_masked_BS = np.zeros((B, S), bool)
    is_masked_BS[:, [17, 19]] = True
    positions = []
    for b, spans in enumerate(views):
        for c, (start, stop) in enumerate(spans):
            chunk_BS[b, start:stop] = c
            is_active_BC[b, c] = True
            is_masked_BS[b, start:stop] = True
            positions.append(b * S + start)  # a token target a chunk
    return Batch(
        record_ids=("x", "y", "z"),
        view_B=np.zeros(B, np.int32),
        student_ids_BS=rng.integers(0, V, (B, S)).astype(np.int32),
        is_real_BS=np.ones((B, S), bool),
        is_target_BS=np.broadcast_to(np.arange(S) >= 3, (B, S)).copy(),
        is_masked_BS=is_masked_BS,
        time_B=np.array([0.3, 0.6, 0.9], np.float32),
        chunk_BS=chunk_BS,
        is_active_BC=is_active_BC,
        teacher_logp_BC=np.where(is_active_BC, -3 * rng.random((B, 3)), 0).astype(np.float32),
        token_position_M=np.array(positions, np.int32),
        tokens=DenseTargets(
            logits_MV=2 * rng.standard_normal((len(positions), SHARED)).astype(np.float32)
        ),
    )


@pytest.fixture(scope="module")
def tensors(batch):
    return as_tensors(batch, temperature=TEMPERATURE)


@pytest.fixture
def answer(tensors) -> StudentAnswer:
    generator = torch.Generator().manual_seed(1)
    num_masked = int(tensors["is_masked_BS"].sum())
    logits_NV = 2 * torch.randn(num_masked, V, generator=generator)
    logits_NV.requires_grad_()
    ids_N = tensors["student_ids_BS"][tensors["is_masked_BS"]]
    return StudentAnswer(logits_NV=logits_NV, logp_N=gold_logp(logits_NV, ids_N))


def _places(batch: Batch) -> list[tuple[int, int]]:
    """(b, s) of each row of the student's logits."""
    return [(b, s) for b in range(B) for s in range(S) if batch.is_masked_BS[b, s]]


def _chunk_sums(batch, answer, views):
    places = _places(batch)
    sums = torch.zeros(B, 3)
    for b, spans in enumerate(views):
        for c, (start, stop) in enumerate(spans):
            sums[b, c] = sum(answer.logp_N[places.index((b, s))] for s in range(start, stop))
    return sums


def _token_rows(batch, answer):
    places = _places(batch)
    rows = [
        answer.logits_NV[places.index(divmod(p, S)), :SHARED]
        for p in batch.token_position_M.tolist()
    ]
    time_M = torch.tensor([float(batch.time_B[p // S]) for p in batch.token_position_M.tolist()])
    return torch.stack(rows), torch.from_numpy(batch.tokens.logits_MV), time_M


def test_the_students_chunks_are_the_sums_of_their_own_tokens(batch, tensors, answer, views):
    got_BC = student_chunk_logp(answer, tensors)
    assert_close(got_BC, _chunk_sums(batch, answer, views), **EXACT)
    assert (got_BC[~tensors["is_active_BC"]] == 0).all()


def test_cross_entropy_alone_has_no_distillation_term():
    assert build_distillation(MaskedNll(), shared_vocab=None) is None


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["calm", "calm_tidal", "reverse_calm", "reverse_calm+tidal"])
def test_a_chunk_objective_is_its_formula(name, progress, batch, tensors, answer, views):
    student_BC = _chunk_sums(batch, answer, views)
    teacher_BC, is_active_BC = (
        torch.from_numpy(x) for x in (batch.teacher_logp_BC, batch.is_active_BC)
    )
    chunks = (student_BC, teacher_BC, is_active_BC)
    time_B = torch.from_numpy(batch.time_B)
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
    got = distillation.term(answer, tensors, progress)
    assert_close(got.total, want.total, **EXACT)
    assert int(got.count) == 5
    (got_grad,) = torch.autograd.grad(got.total, answer.logits_NV, retain_graph=True)
    (want_grad,) = torch.autograd.grad(want.total, answer.logits_NV)
    assert_close(got_grad, want_grad, **EXACT)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "name", ["forward_kl", "tidal_kl", "tidal_kl uniform", "reverse_kl", "reverse_kl+tidal"]
)
def test_a_token_objective_is_its_formula(name, progress, batch, tensors, answer):
    student_MV, teacher_MV, time_M = _token_rows(batch, answer)
    rows = (student_MV, teacher_MV)
    share_M = tidal_lambda(progress, time_M)
    fields = {"type": name.split()[0].removesuffix("+tidal"), "temperature": TEMPERATURE}
    if name == "forward_kl":
        want = forward_kl(*rows, temperature=TEMPERATURE)
    elif name.startswith("tidal_kl"):
        is_uniform = "uniform" in name
        if is_uniform:
            fields["tidal"] = {"timestep_weight": "uniform"}
        weight_M = torch.ones_like(time_M) if is_uniform else midrange_weight(time_M)
        want = tidal_kl(*rows, temperature=TEMPERATURE, lambda_M=share_M, weight_M=weight_M)
    elif name == "reverse_kl":
        want = reverse_kl(*rows, temperature=TEMPERATURE)
    else:
        fields |= {"tidal": {}, "tidal_against_reverse": True}
        mixed_MV = (1 - share_M[:, None]) * student_MV.detach() + share_M[:, None] * teacher_MV
        want = reverse_kl(student_MV, mixed_MV, temperature=TEMPERATURE)
    distillation = build_distillation(_config(**fields), shared_vocab=SHARED, expand=live_rows)
    assert (distillation.normalizer, distillation.temperature) == ("tokens", TEMPERATURE)
    got = distillation.term(answer, tensors, progress)
    assert_close(got.total, want.total, **EXACT)
    assert int(got.count) == 5
    (got_grad,) = torch.autograd.grad(got.total, answer.logits_NV, retain_graph=True)
    (want_grad,) = torch.autograd.grad(want.total, answer.logits_NV)
    assert_close(got_grad, want_grad, **EXACT)
    assert (got_grad[:, SHARED:] == 0).all()


def test_tidal_moves_from_the_student_to_the_teacher_with_progress(tensors, answer):
    """At the start, at t near 1, the target is the student itself: nothing to learn."""
    config = _config(
        type="tidal_kl", tidal={"lambda_init": 0.0, "lambda_max": 1.0, "axes": "training"}
    )
    distillation = build_distillation(config, shared_vocab=SHARED, expand=live_rows)
    values = [
        distillation.term(answer, tensors, progress).total.item() for progress in (0.0, 0.5, 1.0)
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
def test_a_cache_of_the_whole_vocabulary_is_the_live_teacher_bit_for_bit(
    name, batch, tensors, answer
):
    config = _config(type=name)
    exact = expander(_kept(SHARED), None, torch.device("cpu"))
    cached = as_tensors(_as_top_k(batch, SHARED), temperature=TEMPERATURE)
    got, want = (
        build_distillation(config, shared_vocab=SHARED, expand=expand).term(answer, x, 0.3).total
        for expand, x in ((exact, cached), (live_rows, tensors))
    )
    assert torch.equal(got, want)


def test_a_sparse_teacher_keeps_the_kept_tokens_probabilities_at_the_objectives_temperature(
    batch, tensors
):
    cached = as_tensors(_as_top_k(batch, 4), temperature=TEMPERATURE)
    expand = expander(_kept(4), None, torch.device("cpu"))
    sparse_MV = (expand(cached, TEMPERATURE) / TEMPERATURE).softmax(-1)
    dense_MV = (live_rows(tensors, TEMPERATURE) / TEMPERATURE).softmax(-1)
    ids_MK = cached["teacher_ids_MK"]
    assert_close(sparse_MV.gather(1, ids_MK), dense_MV.gather(1, ids_MK), **EXACT)


@pytest.mark.parametrize(("temperature", "column"), [(1.0, 0), (2.0, 1)])
def test_the_logsumexp_is_that_of_the_objectives_temperature(batch, temperature, column):
    sparse = _as_top_k(batch, 4)
    got = as_tensors(sparse, temperature=temperature)["teacher_logsumexp_M"].numpy()
    np.testing.assert_array_equal(got, sparse.tokens.logsumexp_MJ[:, column])


def test_a_batch_without_an_active_chunk_or_token_is_a_differentiable_zero(batch, answer):
    silent = Batch(
        **{name: getattr(batch, name) for name in batch.__slots__}
        | {
            "is_active_BC": np.zeros((B, 3), bool),
            "chunk_BS": np.full((B, S), -1, np.int32),
            "token_position_M": np.zeros(0, np.int32),
            "tokens": DenseTargets(logits_MV=np.zeros((0, SHARED), np.float32)),
        }
    )
    for name in ("reverse_calm", "calm", "calm_tidal", "forward_kl", "tidal_kl", "reverse_kl"):
        distillation = build_distillation(_config(type=name), shared_vocab=SHARED, expand=live_rows)
        term = distillation.term(answer, as_tensors(silent, temperature=TEMPERATURE), 0.5)
        assert int(term.count) == 0
        (grad,) = torch.autograd.grad(term.total, answer.logits_NV, retain_graph=True)
        assert term.total.item() == 0
        assert torch.equal(grad, torch.zeros_like(grad))
