"""From configuration to the objective in force: the one place that knows which formula is meant.

Axes: B example, S position, N masked position, M masked aligned position, C chunk, V vocabulary.
"""

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
    midrange_weight,
    reverse_calm,
    reverse_kl,
    tidal_kl,
    tidal_lambda,
)
from pipeline.train.expand import Expand
from pipeline.train.tensors import TensorBatch

Normalizer = Literal["none", "chunks", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentAnswer:
    """What the student says at the masked positions, in order of example and position."""

    logits_NV: Float[Tensor, "N V"]
    logp_N: Float[Tensor, " N"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """A distillation term: its formula, its weight, and over what its mean is taken.

    `temperature` is None where no token distributions are read. `term(answer, batch, progress)`.
    """

    name: str
    weight: float
    normalizer: Normalizer
    temperature: float | None
    term: Callable[[StudentAnswer, TensorBatch, float], LossTerm]


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


def student_chunk_logp(answer: StudentAnswer, batch: TensorBatch) -> Float[Tensor, "B C"]:
    """The student's log-likelihood of each active chunk's own text."""
    num_examples, num_chunks = batch["is_active_BC"].shape
    is_masked_BS, chunk_BS = batch["is_masked_BS"], batch["chunk_BS"]
    offset_B1 = num_chunks * torch.arange(num_examples, device=chunk_BS.device)[:, None]
    flat_BS = torch.where(chunk_BS < 0, -1, chunk_BS + offset_B1)
    flat_N = flat_BS[is_masked_BS]
    return chunk_logp(answer.logp_N, flat_N, num_examples * num_chunks).view(num_examples, -1)


def _chunk_term(
    config: Calm | CalmTidal | ReverseCalm,
) -> Callable[[StudentAnswer, TensorBatch, float], LossTerm]:
    def term(answer: StudentAnswer, batch: TensorBatch, progress: float) -> LossTerm:
        student_BC, teacher_BC = student_chunk_logp(answer, batch), batch["teacher_logp_BC"]
        is_active_BC, time_B = batch["is_active_BC"], batch["time_B"]
        temperature = config.temperature
        if isinstance(config, Calm):
            return calm(student_BC, teacher_BC, is_active_BC, temperature=temperature)
        if isinstance(config, CalmTidal):
            return calm_tidal(
                student_BC,
                teacher_BC,
                is_active_BC,
                temperature=temperature,
                lambda_B=lambda_at(config.tidal, progress, time_B),
                weight_B=_weight(config.tidal, time_B),
            )
        if config.tidal is not None:
            share_B1 = lambda_at(config.tidal, progress, time_B)[:, None]
            mixed_BC = (1 - share_B1) * (student_BC.detach() / temperature).exp()
            mixed_BC = mixed_BC + share_B1 * (teacher_BC / temperature).exp()
            teacher_BC = temperature * mixed_BC.clamp_min(torch.finfo(mixed_BC.dtype).tiny).log()
        return reverse_calm(student_BC, teacher_BC, is_active_BC, temperature=temperature)

    return term


def _token_term(
    config: ForwardKl | ReverseKl | TidalKl, shared_vocab: int, expand: Expand
) -> Callable[[StudentAnswer, TensorBatch, float], LossTerm]:
    def term(answer: StudentAnswer, batch: TensorBatch, progress: float) -> LossTerm:
        position_M = batch["token_position_M"]
        is_masked_BS = batch["is_masked_BS"]
        rank_P = is_masked_BS.flatten().cumsum(0) - 1  # flattened position -> row of the logits
        student_MV = answer.logits_NV[rank_P[position_M], :shared_vocab].float()
        teacher_MV = expand(batch, config.temperature)
        if isinstance(config, ForwardKl):
            return forward_kl(student_MV, teacher_MV, temperature=config.temperature)
        time_M = batch["time_B"][position_M // is_masked_BS.shape[1]]
        if isinstance(config, TidalKl):
            return tidal_kl(
                student_MV,
                teacher_MV,
                temperature=config.temperature,
                lambda_M=lambda_at(config.tidal, progress, time_M),
                weight_M=_weight(config.tidal, time_M),
            )
        if config.tidal is not None:
            share_M1 = lambda_at(config.tidal, progress, time_M)[:, None]
            teacher_MV = (1 - share_M1) * student_MV.detach() + share_M1 * teacher_MV
        return reverse_kl(student_MV, teacher_MV, temperature=config.temperature)

    return term
