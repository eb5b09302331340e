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
from pipeline.teacher.keep import Keep, KeepChunks, KeepHidden, KeepTokens, RowKeeper
from storage_schemas.basis import Basis
from storage_schemas.views import TeacherPass

# Float32 logits of size 10; other batches and other kernels reorder sums.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-5}
TEMPERATURES = (1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A backend to check, passes to ask it, and what a plain forward pass says of each.

    make(batch_tokens) gives a backend. oracle(one) gives the logits [T, V] that predict the tokens
    of one pass alone, computed without the backend. The passes have several lengths, and one of
    them has nothing to answer.
    """

    make: Callable[[int], TeacherBackend]
    oracle: Callable[[TeacherPass], Tensor]
    passes: Sequence[TeacherPass]
    many_tokens: int = 4096


Place = tuple[int, int]


def rows_of(backend: TeacherBackend, passes: Sequence[TeacherPass]) -> dict[Place, Tensor]:
    """(pass, position) -> logits, the head's of the kept hidden states."""
    rows = {}
    for place, hidden_H in kept_of(backend, passes, KeepHidden(), "hidden_MH").items():
        hidden_1H = torch.from_numpy(hidden_H[None]).to(backend.device, backend.head.weight.dtype)
        with torch.no_grad():
            rows[place] = backend.head(hidden_1H)[0].float().cpu()
    return rows


def kept_of(
    backend: TeacherBackend, passes: Sequence[TeacherPass], keep: Keep, name: str
) -> dict[Place, np.ndarray]:
    """(pass, position) -> one kept quantity; a place that comes twice is an error."""
    rows: dict[Place, np.ndarray] = {}
    for block in backend.rows(passes, keep):
        column = getattr(block.kept, name)
        assert len(block.pass_M) == len(block.position_M) == len(column), "ragged block"
        for one, position, row in zip(
            block.pass_M.tolist(), block.position_M.tolist(), column, strict=True
        ):
            assert (one, position) not in rows, f"pass {one}, token {position} comes twice"
            rows[one, position] = row
    return rows


def keep_tokens(backend: TeacherBackend, vocab_size: int) -> KeepTokens:
    """The 5 largest of the first `vocab_size` logits, and a sketch of 6 plain directions."""
    hidden_size = backend.head.weight.shape[1]
    encode_HR = np.eye(hidden_size, 6, dtype=np.float32)
    head_VH = backend.head.weight.detach().float().cpu().numpy()[:vocab_size]
    basis = Basis(
        mean_H=np.zeros(hidden_size, np.float32),
        encode_HR=encode_HR,
        decode_RV=(head_VH @ encode_HR).T.astype(np.float16),
        base_V=np.zeros(vocab_size, np.float32),
        bias_V=np.zeros(vocab_size, np.float32),
        scale_R=np.ones(6, np.float32),
        step=0.1,
        temperature=2.0,
        coder=None,
    )
    return KeepTokens(k=5, temperatures=TEMPERATURES, vocab_size=vocab_size, basis=basis)


def check_every_answered_position_comes_exactly_once(case: Case) -> None:
    want = {
        (i, int(position))
        for i, one in enumerate(case.passes)
        for position in np.flatnonzero(one.is_answered_T)
    }
    assert rows_of(case.make(case.many_tokens), case.passes).keys() == want


def check_positions_rise_within_a_pass(case: Case) -> None:
    last = dict.fromkeys(range(len(case.passes)), -1)
    for block in case.make(case.many_tokens).rows(case.passes, KeepChunks()):
        for one, position in zip(block.pass_M.tolist(), block.position_M.tolist(), strict=True):
            assert position > last[one], f"pass {one}: token {position} after {last[one]}"
            last[one] = position


def check_what_is_not_kept_has_no_width(case: Case) -> None:
    backend = case.make(case.many_tokens)
    hidden_size = backend.head.weight.shape[1]
    widths = {
        KeepChunks(): (0, 0, 0, 0),
        keep_tokens(backend, backend.vocab_size - 3): (5, 2, 6, 0),
        KeepHidden(): (0, 0, 0, hidden_size),
    }
    for keep, want in widths.items():
        for block in backend.rows(case.passes, keep):
            kept = block.kept
            assert kept.ids_MK.shape[1] == kept.logits_MK.shape[1] == want[0]
            got = [a.shape[1] for a in (kept.logsumexp_MJ, kept.sketch_MR, kept.hidden_MH)]
            assert got == list(want[1:])


def check_kept_numbers_are_those_of_a_plain_forward_pass(case: Case) -> None:
    backend = case.make(case.many_tokens)
    keep = keep_tokens(backend, backend.vocab_size - 3)
    names = ("gold_logp_M", "ids_MK", "logits_MK", "logsumexp_MJ", "sketch_MR")
    got = {name: kept_of(backend, case.passes, keep, name) for name in names}
    hidden = kept_of(backend, case.passes, KeepHidden(), "hidden_MH")
    keeper = RowKeeper.of(keep, torch.device("cpu"))
    for i, one in enumerate(case.passes):
        want_TV = case.oracle(one)
        for position in np.flatnonzero(one.is_answered_T).tolist():
            gold_1 = torch.tensor([int(one.clean_ids_T[position])])
            hidden_1H = torch.from_numpy(hidden[i, position])[None]
            want = keeper(hidden_1H, want_TV[position][None].float(), gold_1)
            row = {name: got[name][i, position] for name in names}
            for name in ("gold_logp_M", "logits_MK", "logsumexp_MJ"):
                np.testing.assert_allclose(row[name], getattr(want, name)[0], **TOLERANCE)
            assert_close(
                want_TV[position][torch.from_numpy(row["ids_MK"]).long()].float(),
                torch.from_numpy(row["logits_MK"]),
                **TOLERANCE,
            )
            # a number that lies between two integers may be rounded to either
            assert np.abs(row["sketch_MR"] - want.sketch_MR[0]).max() <= 1
            assert row["sketch_MR"].dtype == np.int16
            assert row["ids_MK"].dtype == np.int32


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
    assert list(backend.rows([], KeepChunks())) == []
    silent = [one for one in case.passes if not one.is_answered_T.any()]
    assert silent, "the case has a pass with nothing to answer"
    assert rows_of(backend, silent) == {}


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_every_answered_position_comes_exactly_once,
    check_positions_rise_within_a_pass,
    check_what_is_not_kept_has_no_width,
    check_kept_numbers_are_those_of_a_plain_forward_pass,
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
