"""What every teacher backend must do; each check takes a `Case` and raises AssertionError.

A backend's own test module runs them all:

    @pytest.mark.parametrize("check", CHECKS, ids=name_of)
    def test_contract(check, case): check(case)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline.teacher.backend import TeacherBackend
from storage_schemas.views import TeacherPass

# Float32 logits of size 10; other batches and other kernels reorder sums.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-5}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A backend to check, passes to ask it, and what a plain forward pass says of each.

    make(batch_tokens) gives a backend. oracle(one) gives the logits [T, V] of the noised tokens of
    one pass alone, computed without the backend. The passes have several lengths, and one of them
    has nothing to answer.
    """

    make: Callable[[int], TeacherBackend]
    oracle: Callable[[TeacherPass], Tensor]
    passes: Sequence[TeacherPass]
    many_tokens: int = 4096


Place = tuple[int, int]


def rows_of(backend: TeacherBackend, passes: Sequence[TeacherPass]) -> dict[Place, Tensor]:
    """(pass, position) -> logits; a place that comes twice is an error."""
    rows: dict[Place, Tensor] = {}
    for block in backend.rows(passes):
        assert len(block.pass_M) == len(block.position_M) == len(block.logits_MV), "ragged block"
        for one, position, row in zip(
            block.pass_M.tolist(), block.position_M.tolist(), block.logits_MV, strict=True
        ):
            assert (one, position) not in rows, f"pass {one}, token {position} comes twice"
            rows[one, position] = row
    return rows


def check_every_answered_position_comes_exactly_once(case: Case) -> None:
    want = {
        (i, int(position))
        for i, one in enumerate(case.passes)
        for position in np.flatnonzero(one.is_answered_T)
    }
    assert rows_of(case.make(case.many_tokens), case.passes).keys() == want


def check_positions_rise_within_a_pass(case: Case) -> None:
    last = dict.fromkeys(range(len(case.passes)), -1)
    for block in case.make(case.many_tokens).rows(case.passes):
        for one, position in zip(block.pass_M.tolist(), block.position_M.tolist(), strict=True):
            assert position > last[one], f"pass {one}: token {position} after {last[one]}"
            last[one] = position


def check_rows_are_float32_over_the_whole_vocabulary(case: Case) -> None:
    backend = case.make(case.many_tokens)
    for block in backend.rows(case.passes):
        assert block.logits_MV.dtype == torch.float32
        assert block.logits_MV.shape[1] == backend.vocab_size
        assert not block.logits_MV.requires_grad


def check_rows_are_the_heads_of_the_hidden_states(case: Case) -> None:
    backend = case.make(case.many_tokens)
    assert backend.head.weight.shape[0] == backend.vocab_size
    for block in backend.rows(case.passes):
        assert block.hidden_MH.device == block.logits_MV.device == backend.device
        assert not block.hidden_MH.requires_grad
        with torch.no_grad():
            assert_close(backend.head(block.hidden_MH).float(), block.logits_MV, **TOLERANCE)


def check_rows_are_those_of_a_plain_forward_pass(case: Case) -> None:
    rows = rows_of(case.make(case.many_tokens), case.passes)
    for i, one in enumerate(case.passes):
        want_TV = case.oracle(one)
        for position in np.flatnonzero(one.is_answered_T).tolist():
            assert_close(rows[i, position], want_TV[position], **TOLERANCE)


def check_together_is_one_by_one(case: Case) -> None:
    together = rows_of(case.make(case.many_tokens), case.passes)
    backend = case.make(1)
    for i, one in enumerate(case.passes):
        for (_, position), row in rows_of(backend, [one]).items():
            assert_close(together[i, position], row, **TOLERANCE)


def check_the_order_of_passes_changes_nothing(case: Case) -> None:
    together = rows_of(case.make(case.many_tokens), case.passes)
    backwards = rows_of(case.make(case.many_tokens), case.passes[::-1])
    last = len(case.passes) - 1
    for (one, position), row in backwards.items():
        assert_close(together[last - one, position], row, **TOLERANCE)


def check_longer_passes_beside_it_change_nothing(case: Case) -> None:
    short, long = (f(case.passes, key=lambda one: len(one.clean_ids_T)) for f in (min, max))
    assert len(short.clean_ids_T) < len(long.clean_ids_T), "the case has passes of several lengths"
    backend = case.make(case.many_tokens)
    alone = rows_of(backend, [short])
    padded = rows_of(backend, [short, long, long])
    for (_, position), row in alone.items():
        assert_close(padded[0, position], row, **TOLERANCE)


def check_equal_calls_give_equal_bits(case: Case) -> None:
    backend = case.make(case.many_tokens)
    first, second = (rows_of(backend, case.passes) for _ in range(2))
    assert all(torch.equal(row, second[place]) for place, row in first.items())


def check_no_pass_and_no_answer_give_no_row(case: Case) -> None:
    backend = case.make(case.many_tokens)
    assert list(backend.rows([])) == []
    silent = [one for one in case.passes if not one.is_answered_T.any()]
    assert silent, "the case has a pass with nothing to answer"
    assert rows_of(backend, silent) == {}


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_every_answered_position_comes_exactly_once,
    check_positions_rise_within_a_pass,
    check_rows_are_float32_over_the_whole_vocabulary,
    check_rows_are_the_heads_of_the_hidden_states,
    check_rows_are_those_of_a_plain_forward_pass,
    check_together_is_one_by_one,
    check_the_order_of_passes_changes_nothing,
    check_longer_passes_beside_it_change_nothing,
    check_equal_calls_give_equal_bits,
    check_no_pass_and_no_answer_give_no_row,
)


def name_of(check: Callable[[Case], None]) -> str:
    """A check as a sentence, for pytest's ids."""
    return check.__name__.removeprefix("check_")
