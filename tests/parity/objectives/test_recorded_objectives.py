"""Totals of every objective on inputs of a closed form, recorded from the method's formulas.

The records were computed in 50-digit decimals, without torch. They hold TIDAL's schedule,
weight and loss together, a quarter of the way through training.
"""

import pytest
import torch
from torch import Tensor

from pipeline import objectives
from pipeline.objectives import LossTerm

RECORDED = {
    "forward_kl": 32.34786350594782,
    "reverse_kl": 31.683594679292987,
    "tidal_kl": 0.10480138477097196,
    "masked_nll": 27.39237459182733,
    "reverse_calm": 29.18242124472626,
    "calm": 28.75468061473856,
    "calm_tidal": 6.133263872910306,
}
COUNTS = {"reverse_calm": 30, "calm": 30, "calm_tidal": 30, "masked_nll": 20}
RTOL = {torch.float64: 1e-12, torch.float32: 1e-5}


def compute(dtype: torch.dtype) -> dict[str, LossTerm]:
    index_MV = torch.arange(45, dtype=torch.float64).reshape(5, 9)
    student_MV: Tensor = (3 * (1 + index_MV).sin()).to(dtype)
    teacher_MV: Tensor = (3 * (2 + index_MV).cos()).to(dtype)
    time_M = torch.tensor([0.125, 0.25, 0.5, 0.75, 0.875], dtype=dtype)
    schedule = objectives.tidal_lambda(0.25, time_M), objectives.midrange_weight(time_M)

    gold_M = 4 * torch.arange(5) % 9
    # every row a batch row, its vocabulary read as chunks, of which every third is inactive
    is_active_BC = (torch.arange(5)[:, None] + torch.arange(9)) % 3 != 0
    chunks = student_MV.log_softmax(-1), teacher_MV.log_softmax(-1), is_active_BC
    return {
        "forward_kl": objectives.forward_kl(student_MV, teacher_MV, temperature=2.0),
        "reverse_kl": objectives.reverse_kl(student_MV, teacher_MV, temperature=2.0),
        "tidal_kl": objectives.tidal_kl(
            student_MV, teacher_MV, temperature=2.0, lambda_M=schedule[0], weight_M=schedule[1]
        ),
        "masked_nll": objectives.masked_nll(student_MV, gold_M, time_M, 20),
        "reverse_calm": objectives.reverse_calm(*chunks, temperature=5.0),
        "calm": objectives.calm(*chunks, temperature=5.0),
        "calm_tidal": objectives.calm_tidal(
            *chunks, temperature=5.0, lambda_B=schedule[0], weight_B=schedule[1]
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", RECORDED)
def test_the_objective_equals_its_record(name: str, dtype: torch.dtype):
    term = compute(dtype)[name]
    assert term.total.dtype == dtype
    assert term.total.item() == pytest.approx(RECORDED[name], rel=RTOL[dtype])
    assert term.count.item() == COUNTS.get(name, 5)
