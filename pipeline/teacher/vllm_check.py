"""Does vLLM run this teacher as transformers does? Asked of the real model, at every start.

vLLM has been seen to ignore bidirectional attention without a word, and to drop the mask of block
diffusion for a sequence that is alone. So rows must move with the tokens that they should see, and
with no others; and some rows must be those of transformers. Nothing switches this off.

Axes: M compared row, V vocabulary, K kept logit, S token, H hidden size.
"""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.models import TeacherConfig
from pipeline.diffusion.leak import (
    block_attention_faults,
    block_causal_faults,
    full_attention_faults,
)
from pipeline.teacher.backend import RowBlock
from pipeline.teacher.families import family_named
from pipeline.teacher.keep import KeepHidden, KeepTokens, KeptRows
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.teacher.vllm_engine import RowRequest
from pipeline.teacher.vllm_plugin.wire import unpack
from storage_schemas.errors import TeacherError
from storage_schemas.views import TeacherPass

if TYPE_CHECKING:
    from pipeline.teacher.vllm_backend import VllmBackend

# The largest error of a logit, in standard deviations of its row's logits over the vocabulary, and
# the share of rows that must keep to it. Rounding may send a token of a mixture of experts to
# another expert where two are nearly equal; wrong attention moves every row by about 1.
TOLERANCE = {"float32": (1e-3, 1.0), "float16": (3e-2, 0.9), "bfloat16": (0.15, 0.9)}
_MOST_ROWS = 16  # of a pass
_K = 16
_FULL_LENGTHS, _FULL_BLOCK = (24, 17, 9), 8  # where the recipe names no block


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What the check found: errors in logits, absolute and in deviations of a row's logits."""

    rows: int
    logit_error: float
    relative_error: float

    def __str__(self) -> str:
        return (
            f"{self.rows} rows differ from transformers' by at most {self.logit_error:.2g} in a "
            f"logit, {self.relative_error:.2g} of a row's standard deviation"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Passes over random tokens, and the logits with which transformers answers them."""

    passes: tuple[TeacherPass, ...]
    logits: dict[tuple[int, int], Float[Tensor, " V"]]
    dtype: str

    @classmethod
    def of(cls, config: TeacherConfig, *, block_size: int | None) -> "Reference":
        """Loads the teacher on transformers, and lets it go again.

        A teacher that needs several GPUs is run on the CPU for this.
        """
        if config.tensor_parallel > 1:
            config = config.model_copy(update={"device": "cpu"})
        backend = TransformersBackend.load(config, block_size=block_size)
        passes = _passes(backend.vocab_size, block_size, family_named(config.family).is_shifted)
        logits: dict[tuple[int, int], Tensor] = {}
        for block in backend.rows(passes, KeepHidden()):
            hidden_MH = torch.from_numpy(block.kept.hidden_MH)
            with torch.inference_mode():
                logits_MV = backend.head(hidden_MH.to(backend.device, backend.head.weight.dtype))
            for pass_index, position, row in zip(
                block.pass_M.tolist(), block.position_M.tolist(), logits_MV, strict=True
            ):
                logits[pass_index, position] = row.float().cpu()
        backend.close()
        del backend
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return cls(passes=passes, logits=logits, dtype=config.dtype)


def check_engine(backend: "VllmBackend", reference: Reference) -> CheckReport:
    """What the check found; TeacherError with the figures where the engine cannot be trusted."""
    faults = _attention_faults(backend)
    if faults:
        raise TeacherError(f"vLLM does not attend as this teacher must: {'; '.join(faults)}")
    together = backend.rows(reference.passes, _keep(backend))
    alone = backend.rows_alone(reference.passes, _keep(backend))
    return _judged(_compared([*together, *alone], reference), reference.dtype)


def _attention_faults(backend: "VllmBackend") -> list[str]:
    """What moves and should not, or should and does not."""
    size = backend.block_size
    generator = torch.Generator().manual_seed(0)
    num_tokens = 3 * (size or _FULL_BLOCK)
    ids_S = torch.randint(2, min(1000, backend.vocab_size), (num_tokens,), generator=generator)

    def noised(ids_1S: Tensor) -> Tensor:
        ids = ids_1S[0].numpy().astype(np.int32)
        everything = np.ones(len(ids), np.bool_)
        one = TeacherPass(
            clean_ids_T=ids,
            noised_ids_T=np.ones_like(ids),
            is_answered_T=everything,
            is_answered_C=everything[:0],
        )
        kept = [block.kept for block in backend.rows([one], KeepHidden())]
        return torch.from_numpy(KeptRows.joined(kept).hidden_MH)[None]

    def alone(ids_1S: Tensor) -> Tensor:
        ids = ids_1S[0].numpy().astype(np.int32)
        backend.engine.keep(KeepHidden())
        request = RowRequest(
            ids=ids, positions=range(len(ids)), gold=ids.tolist(), reads_prefix=False
        )
        (table_MW,) = backend.engine.ask([request])
        return torch.from_numpy(unpack(table_MW, KeepHidden()).hidden_MH)[None]

    if size is None:
        return full_attention_faults(alone, ids_S)
    return [
        *block_attention_faults(noised, ids_S, size),
        *(f"a sequence alone: {fault}" for fault in block_causal_faults(alone, ids_S, size)),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowError:
    """Of one row: its largest error in a logit, and the deviation of its logits."""

    logit: float
    deviation: float


def _compared(blocks: Iterable[RowBlock], reference: Reference) -> list[_RowError]:
    errors: list[_RowError] = []
    for block in blocks:
        kept = block.kept
        for m in range(len(block.pass_M)):
            place = int(block.pass_M[m]), int(block.position_M[m])
            want_V = reference.logits[place]
            gold = int(reference.passes[place[0]].clean_ids_T[place[1]])
            ids_K, got_K = torch.from_numpy(kept.ids_MK[m]), torch.from_numpy(kept.logits_MK[m])
            differences = (
                got_K - want_V[ids_K.long()],  # at the ids that were kept,
                got_K - want_V.topk(len(got_K)).values,  # and rank by rank: no larger one is missed
                (want_V[gold] - want_V.logsumexp(0) - float(kept.gold_logp_M[m]))[None],
            )
            worst = torch.cat(differences).abs().max()  # NaN if one is
            errors.append(_RowError(logit=worst.item(), deviation=want_V.std().item()))
    return errors


def _judged(errors: Sequence[_RowError], dtype: str) -> CheckReport:
    logit_M = np.array([one.logit for one in errors])
    relative_M = np.array([one.logit / one.deviation for one in errors])
    report = CheckReport(
        rows=len(errors),
        logit_error=float(logit_M.max()),
        relative_error=float(relative_M.max()),
    )
    most, share = TOLERANCE[dtype]
    is_close_M = relative_M <= most  # NaN is not
    if is_close_M.mean() < share:
        raise TeacherError(
            f"expected vLLM's rows to be transformers' (an error of at most {most} standard "
            f"deviations of a row's logits in {dtype}), got {int((~is_close_M).sum())} of "
            f"{len(errors)} rows beyond that: {report}"
        )
    return report


def _keep(backend: "VllmBackend") -> KeepTokens:
    vocab_size = backend.vocab_size
    return KeepTokens(k=min(_K, vocab_size), temperatures=(1.0,), vocab_size=vocab_size)


def _passes(vocab_size: int, block_size: int | None, is_shifted: bool) -> tuple[TeacherPass, ...]:
    """Random tokens of several lengths, about half of them answered, a few in every block."""
    rng = np.random.default_rng(0)
    lengths = _FULL_LENGTHS
    if block_size is not None:
        lengths = (3 * block_size, 2 * block_size + (block_size + 1) // 2, block_size)
    passes: list[TeacherPass] = []
    for length in lengths:
        clean_ids_T = rng.integers(2, min(1000, vocab_size), length).astype(np.int32)
        first = 1 if is_shifted else 0
        count = min(_MOST_ROWS, (length - first + 1) // 2)
        is_answered_T = np.zeros(length, np.bool_)
        is_answered_T[first + rng.permutation(length - first)[:count]] = True
        passes.append(
            TeacherPass(
                clean_ids_T=clean_ids_T,
                noised_ids_T=np.where(is_answered_T, np.int32(1), clean_ids_T),
                is_answered_T=is_answered_T,
                is_answered_C=is_answered_T[:0],
            )
        )
    return tuple(passes)
