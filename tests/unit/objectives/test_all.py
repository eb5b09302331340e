"""Laws that every objective keeps: one row an objective."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline import objectives
from pipeline.objectives import LossTerm

VOCABULARY = 11
NUM_ROWS = 6


def _masked_nll(student: Tensor, teacher: Tensor) -> LossTerm:
    ids, time = teacher.argmax(-1), torch.linspace(0.1, 1, len(student))
    return objectives.masked_nll(student, ids, time, 2 * len(student))


def _forward_kl(student: Tensor, teacher: Tensor) -> LossTerm:
    return objectives.forward_kl(student, teacher, temperature=2.0)


def _reverse_kl(student: Tensor, teacher: Tensor) -> LossTerm:
    return objectives.reverse_kl(student, teacher, temperature=2.0)


def _tidal_kl(student: Tensor, teacher: Tensor) -> LossTerm:
    return objectives.tidal_kl(student, teacher, temperature=2.0, lambda_M=0.4, weight_M=0.7)


def _chunks(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every row a batch row, its vocabulary read as chunks: log-likelihoods, all active."""
    is_active = torch.ones(student.shape, dtype=torch.bool)
    return student.log_softmax(-1), teacher.log_softmax(-1), is_active


def _calm(student: Tensor, teacher: Tensor) -> LossTerm:
    return objectives.calm(*_chunks(student, teacher), temperature=2.0)


def _reverse_calm(student: Tensor, teacher: Tensor) -> LossTerm:
    return objectives.reverse_calm(*_chunks(student, teacher), temperature=2.0)


def _calm_tidal(student: Tensor, teacher: Tensor) -> LossTerm:
    return objectives.calm_tidal(
        *_chunks(student, teacher), temperature=2.0, lambda_B=0.4, weight_B=0.7
    )


Objective = Callable[[Tensor, Tensor], LossTerm]
ALL: list[Objective] = [
    _masked_nll,
    _forward_kl,
    _reverse_kl,
    _tidal_kl,
    _calm,
    _reverse_calm,
    _calm_tidal,
]
every_objective = pytest.mark.parametrize("objective", ALL, ids=lambda f: f.__name__.strip("_"))


def logits(num_rows: int = NUM_ROWS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(2, num_rows, VOCABULARY, generator=generator)).to(dtype)
    return student.requires_grad_(), teacher


@every_objective
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_returns_a_scalar_term_in_float32_or_wider(objective: Objective, dtype: torch.dtype):
    term = objective(*logits(dtype=dtype))
    assert isinstance(term, LossTerm)
    assert term.total.shape == term.count.shape == term.mean().shape == ()
    assert term.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert term.count.item() > 0


@every_objective
def test_it_teaches_the_student_in_the_students_own_dtype(objective: Objective):
    for dtype in (torch.bfloat16, torch.float32):
        student, teacher = logits(dtype=dtype)
        objective(student, teacher).mean().backward()
        assert student.grad is not None
        assert student.grad.dtype == dtype
        assert student.grad.isfinite().all()
        assert student.grad.any()


@every_objective
def test_nothing_to_learn_from_is_a_differentiable_zero(objective: Objective):
    student, teacher = logits(0)
    mean = objective(student, teacher).mean()
    mean.backward()
    assert mean.item() == 0.0
    assert_close(student.grad, torch.zeros(0, VOCABULARY))


@pytest.mark.parametrize("objective", [_tidal_kl, _calm_tidal])
def test_a_target_held_constant_gives_the_teacher_no_gradient(objective: Objective):
    student, teacher = logits()
    teacher.requires_grad_()
    objective(student, teacher).total.backward()
    assert teacher.grad is None or not teacher.grad.any()


@every_objective
def test_it_leaves_its_inputs_as_they_were(objective: Objective):
    student, teacher = logits()
    before = student.detach().clone(), teacher.clone()
    objective(student, teacher).total.backward()
    assert_close((student.detach(), teacher), before, atol=0, rtol=0)


@pytest.mark.parametrize("objective", [f for f in ALL if f is not _masked_nll])
@pytest.mark.parametrize("cut", [0, 1, 3, NUM_ROWS])
def test_the_terms_of_two_parts_add_to_the_term_of_the_whole(objective: Objective, cut: int):
    student, teacher = logits()
    whole = objective(student, teacher)
    parts = objective(student[:cut], teacher[:cut]) + objective(student[cut:], teacher[cut:])
    assert parts.count.item() == whole.count.item()
    assert_close(parts.mean(), whole.mean())


@pytest.mark.parametrize("cut", [0, 1, 3, NUM_ROWS])
def test_the_nll_of_two_parts_adds_to_the_nll_of_the_whole(cut: int):
    student, _ = logits()
    ids, time, maskable = torch.arange(NUM_ROWS), torch.linspace(0.1, 1, NUM_ROWS), [3, 9]
    whole = objectives.masked_nll(student, ids, time, sum(maskable))
    first, second = (
        objectives.masked_nll(student[rows], ids[rows], time[rows], count)
        for rows, count in zip([slice(cut), slice(cut, None)], maskable, strict=True)
    )
    assert_close((first + second).mean(), whole.mean())
