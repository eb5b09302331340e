import math

import pytest
import torch
from torch.testing import assert_close

from pipeline.objectives.precision import as_column, upcast
from pipeline.objectives.temperature import soften
from pipeline.objectives.term import LossTerm


def test_a_term_is_a_sum_and_a_count():
    term = LossTerm(torch.tensor(6.0), torch.tensor(4))
    named = LossTerm(total=torch.tensor(6.0), count=torch.tensor(4))
    assert term.mean().item() == named.mean().item() == 1.5  # 6 / 4


def test_over_sums_where_the_mask_holds():
    # 1 + 4 = 5, over 2 items
    mask = torch.tensor([True, False, False, True])
    term = LossTerm.over(torch.tensor([1.0, 2.0, 3.0, 4.0]), mask)
    assert (term.total.item(), term.count.item(), term.mean().item()) == (5.0, 2, 2.5)


def test_the_mean_of_a_sum_of_parts_is_the_mean_of_the_whole():
    # parts of unequal size: (1 + 2 + 9) / 3 = 4, while the average of averages is 5.25
    parts = LossTerm.over_all(torch.tensor([1.0, 2.0])) + LossTerm.over_all(torch.tensor([9.0]))
    assert parts.mean().item() == LossTerm.over_all(torch.tensor([1.0, 2.0, 9.0])).mean() == 4.0


def test_an_empty_mask_is_a_zero_that_can_be_differentiated():
    values = torch.tensor([1.0, math.nan, math.inf], requires_grad=True)
    mean = LossTerm.over(values, torch.zeros(3, dtype=torch.bool)).mean()
    mean.backward()
    assert mean.item() == 0.0
    assert_close(values.grad, torch.zeros(3))


def test_no_items_at_all_is_a_zero_that_can_be_differentiated():
    values = torch.zeros(0, requires_grad=True)
    mean = LossTerm.over_all(values).mean()
    mean.backward()
    assert mean.item() == 0.0


def test_the_mean_over_no_items_gives_its_total_a_zero_gradient():
    total = torch.tensor(0.0, requires_grad=True)
    LossTerm(total, torch.tensor(0)).mean().backward()
    assert_close(total.grad, torch.tensor(0.0))


def test_what_stands_outside_the_mask_is_unseen_in_value_and_gradient():
    values = torch.tensor([2.0, math.nan, math.inf, -math.inf], requires_grad=True)
    term = LossTerm.over(values, torch.tensor([True, False, False, False]))
    term.mean().backward()
    assert term.total.item() == 2.0
    assert_close(values.grad, torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_an_empty_term_adds_nothing_to_another():
    values = torch.tensor([3.0, 5.0])
    empty = LossTerm.over(values, torch.zeros(2, dtype=torch.bool))
    assert (LossTerm.over_all(values) + empty).mean().item() == 4.0


def test_sums_run_in_float32_or_wider():
    # bfloat16 has 8 bits: 256 + 1 would stay 256
    values = torch.tensor([256.0, 1.0], dtype=torch.bfloat16)
    assert LossTerm.over_all(values).total.item() == 257.0
    mask = torch.tensor([True, True])
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert upcast(values.to(dtype)).dtype == expected
        assert LossTerm.over(values.to(dtype), mask).total.dtype == expected
        assert LossTerm.over(values.to(dtype), mask).mean().dtype == expected
        assert LossTerm.over_all(values.to(dtype)).mean().dtype == expected


def test_a_column_is_one_number_or_one_a_row_in_the_dtype_of_its_rows():
    like_NV = torch.zeros(2, 3)
    assert_close(as_column(0.5, like_NV), torch.tensor([[0.5]]))
    assert_close(as_column(torch.tensor(0.5), like_NV), torch.tensor([[0.5]]))
    per_row = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert_close(as_column(per_row, like_NV), torch.tensor([[1.0], [2.0]]))


def test_softening_divides_in_float32_or_wider():
    # a third has 24 bits in float32, 8 in bfloat16
    third = soften(torch.tensor([1.0], dtype=torch.bfloat16), 3)
    assert_close(third, torch.tensor([1 / 3]), atol=0, rtol=1e-7)
    assert soften(third.double(), 3).dtype == torch.float64


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(temperature: float):
    with pytest.raises(ValueError, match=r"temperature: expected a positive finite number, got"):
        soften(torch.zeros(1), temperature)
