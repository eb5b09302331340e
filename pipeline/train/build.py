"""From configuration to the objective in force: the one place that knows which formula is meant.

Axes: N masked position, M masked aligned position, C chunk, V vocabulary; of a batch, or of a block
of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.objective import (
    Calm,
    CalmTidal,
    ForwardKl,
    MaskedNll,
    ObjectiveConfig,
    ReverseCalm,
    ReverseKl,
    TidalConfig,
    TidalKl,
)
from pipeline.objectives import (
    LossTerm,
    calm,
    calm_tidal,
    chunk_logp,
    forward_kl,
    is_clamped,
    midrange_weight,
    reverse_calm,
    reverse_kl,
    tidal_kl,
    tidal_lambda,
)
from pipeline.train.expand import Expand
from pipeline.train.tensors import LossRows

Normalizer = Literal["none", "chunks", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentAnswer:
    """What the student says at the masked positions, in order of example and position."""

    logits_NV: Float[Tensor, "N V"]
    logp_N: Float[Tensor, " N"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """A distillation term, and what is worth watching beside it: each a sum and its count."""

    term: LossTerm
    measures: dict[str, LossTerm]


Term = Callable[[StudentAnswer, LossRows, float], Distilled]
"""The student's answer, the rows it is about, and the training progress in; a sum over rows out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """A distillation term: its formula, its weight, and over what its mean is taken.

    `temperature` is None where no token distributions are read. A term is a sum over chunks or
    positions, so it may be taken block by block, as long as no chunk is cut.
    """

    name: str
    weight: float
    normalizer: Normalizer
    temperature: float | None
    term: Term


def build_distillation(
    config: ObjectiveConfig, *, shared_vocab: int | None, expand: Expand | None = None
) -> Distillation | None:
    """The configured term; None for cross-entropy alone.

    Token terms need the shared vocabulary, and to be told how the cache's rows expand.
    """
    if isinstance(config, MaskedNll):
        return None
    if isinstance(config, Calm | CalmTidal | ReverseCalm):
        return Distillation(
            name=config.type,
            weight=config.weight,
            normalizer="chunks",
            temperature=None,
            term=_chunk_term(config),
        )
    assert shared_vocab is not None, "the recipe refuses token objectives without one"
    assert expand is not None, "the cache is refused that has no distributions"
    return Distillation(
        name=config.type,
        weight=config.weight,
        normalizer="tokens",
        temperature=config.temperature,
        term=_token_term(config, shared_vocab, expand),
    )


def lambda_at(tidal: TidalConfig, progress: float, time: Tensor) -> Tensor:
    """TIDAL's share of the teacher, for each time."""
    share = tidal_lambda(
        progress,
        time,
        init=tidal.lambda_init,
        max=tidal.lambda_max,
        growth=tidal.growth,
        axes=tidal.axes,
    )
    return torch.as_tensor(share)


def _weight(tidal: TidalConfig, time: Tensor) -> Tensor:
    if tidal.timestep_weight == "uniform":
        return torch.ones_like(time)
    return torch.as_tensor(midrange_weight(time))


def student_chunk_logp(answer: StudentAnswer, rows: LossRows) -> Float[Tensor, " C"]:
    """The student's log-likelihood of each active chunk's own text."""
    return chunk_logp(answer.logp_N, rows.chunk_N, len(rows.teacher_logp_C))


def _chunk_term(config: Calm | CalmTidal | ReverseCalm) -> Term:
    def term(answer: StudentAnswer, rows: LossRows, progress: float) -> Distilled:
        # every chunk a row of its own, since chunks of one example may be in several blocks
        student_C1 = student_chunk_logp(answer, rows)[:, None]
        teacher_C1, time_C = rows.teacher_logp_C[:, None], rows.time_C
        is_active_C1 = torch.ones_like(teacher_C1, dtype=torch.bool)
        tidal = None if isinstance(config, Calm) else config.tidal
        lambda_C = None if tidal is None else lambda_at(tidal, progress, time_C)
        measures = _chunk_measures(student_C1, teacher_C1, lambda_C, config.temperature)
        chunks = (student_C1, teacher_C1, is_active_C1)
        if isinstance(config, Calm):
            value = calm(*chunks, temperature=config.temperature)
        elif isinstance(config, CalmTidal):
            assert lambda_C is not None, "chunk TIDAL has a lambda"
            value = calm_tidal(
                *chunks,
                temperature=config.temperature,
                lambda_B=lambda_C,
                weight_B=_weight(config.tidal, time_C),
            )
        else:
            if lambda_C is not None:
                teacher_C1 = _mixed(student_C1, teacher_C1, lambda_C[:, None], config.temperature)
            value = reverse_calm(
                student_C1, teacher_C1, is_active_C1, temperature=config.temperature
            )
        return Distilled(term=value, measures=measures)

    return term


def _mixed(
    student_C1: Tensor, teacher_C1: Tensor, lambda_C1: Tensor, temperature: float
) -> Float[Tensor, "C 1"]:
    """The log-likelihood whose softened probability is TIDAL's target."""
    mixed_C1 = (1 - lambda_C1) * (student_C1.detach() / temperature).exp()
    mixed_C1 = mixed_C1 + lambda_C1 * (teacher_C1 / temperature).exp()
    return temperature * mixed_C1.clamp_min(torch.finfo(mixed_C1.dtype).tiny).log()


@torch.no_grad()
def _chunk_measures(
    student_C1: Tensor, teacher_C1: Tensor, lambda_C: Tensor | None, temperature: float
) -> dict[str, LossTerm]:
    """Agreement: both put the chunk's softened probability on the same side of one half."""
    student, teacher = (is_clamped(x, temperature=temperature) for x in (student_C1, teacher_C1))
    half = -temperature * math.log(2)
    measures = {
        "clamped_student": LossTerm.over_all(student.float()),
        "clamped_teacher": LossTerm.over_all(teacher.float()),
        "agreement": LossTerm.over_all(((student_C1 > half) == (teacher_C1 > half)).float()),
    }
    return measures | ({} if lambda_C is None else {"lambda": LossTerm.over_all(lambda_C)})


def _token_term(config: ForwardKl | ReverseKl | TidalKl, shared_vocab: int, expand: Expand) -> Term:
    def term(answer: StudentAnswer, rows: LossRows, progress: float) -> Distilled:
        assert rows.teacher is not None, "token objectives come with the teacher's rows"
        student_MV = answer.logits_NV[:, :shared_vocab]
        if len(rows.row_M) < len(student_MV):
            student_MV = student_MV[rows.row_M]
        teacher_MV = expand(rows.teacher, config.temperature)
        tidal = None if isinstance(config, ForwardKl) else config.tidal
        lambda_M = None if tidal is None else lambda_at(tidal, progress, rows.time_N[rows.row_M])
        measures = _token_measures(student_MV, teacher_MV, lambda_M)
        if isinstance(config, ForwardKl):
            value = forward_kl(student_MV, teacher_MV, temperature=config.temperature)
        elif isinstance(config, TidalKl):
            assert lambda_M is not None, "TIDAL has a lambda"
            value = tidal_kl(
                student_MV,
                teacher_MV,
                temperature=config.temperature,
                lambda_M=lambda_M,
                weight_M=_weight(config.tidal, rows.time_N[rows.row_M]),
            )
        else:
            if lambda_M is not None:
                lambda_M1 = lambda_M[:, None]
                teacher_MV = (1 - lambda_M1) * student_MV.detach() + lambda_M1 * teacher_MV
            value = reverse_kl(student_MV, teacher_MV, temperature=config.temperature)
        return Distilled(term=value, measures=measures)

    return term


@torch.no_grad()
def _token_measures(
    student_MV: Tensor, teacher_MV: Tensor, lambda_M: Tensor | None
) -> dict[str, LossTerm]:
    """Agreement: both find the same token the likeliest."""
    if len(student_MV) == 0:
        return {}
    is_same_M = student_MV.argmax(-1) == teacher_MV.argmax(-1)
    measures = {"agreement": LossTerm.over_all(is_same_M.float())}
    return measures | ({} if lambda_M is None else {"lambda": LossTerm.over_all(lambda_M)})
