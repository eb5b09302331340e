"""What a model says at the masked positions of cached views: a student that is run, or the teacher
as the cache remembers it.

Axes: P position of an answered chunk, C chunk, K likely token, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.objectives import chunk_logp
from pipeline.report.views import CachedViews
from pipeline.student.forward import head, masked_hidden
from pipeline.train.expand import expander
from pipeline.train.tensors import Block, LossRows, TensorBatch
from storage_schemas.examples import Bools, Ints
from storage_schemas.targets import Floats

NUM_LIKELY = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Probabilities are at T = 1, over the whole vocabulary; the teacher's over what is kept.

    shared_top_P: the likeliest of the tokens that both models have. likely_*_PK: the likeliest
    tokens in order.
    """

    shared_top_P: Ints
    confidence_P: Floats
    is_correct_P: Bools
    logp_P: Floats
    likely_id_PK: Ints
    likely_p_PK: Floats
    logp_C: Floats


@torch.no_grad()
def student_answers(model: PreTrainedModel, views: CachedViews, *, mask_id: int) -> Answers:
    """The student's answers; it reads what it would read in training."""
    shared = views.kept.vocab_size if views.has_tokens else None
    parts: list[Answers] = []
    model.eval()
    for cpu_batch in views.batches():
        batch = cpu_batch.to(model.device)
        hidden_NH = masked_hidden(
            model,
            batch.student_ids_BS,
            batch.is_masked_BS,
            mask_id=mask_id,
            block_size=views.block_size,
            example_BS=batch.example_BS,
        )

        def logits(block: Block, rows: LossRows, hidden_NH: Tensor = hidden_NH) -> Tensor:
            return head(model)(hidden_NH[block.positions])[rows.chunk_N >= 0].float()

        parts.append(_answers(batch, logits, shared))
    return _joined(parts)


@torch.no_grad()
def teacher_answers(views: CachedViews, device: torch.device) -> Answers:
    """The teacher's, from what the cache keeps of its distributions; no teacher is loaded."""
    assert views.has_tokens, "a cache of distributions"
    expand = expander(views.kept, views.basis, device)

    def logits(block: Block, rows: LossRows) -> Tensor:
        del block
        assert rows.teacher is not None, "a batch with token targets"
        return expand(rows.teacher, 1.0)

    batches = (batch.to(device) for batch in views.batches())
    found = _joined([_answers(batch, logits, views.kept.vocab_size) for batch in batches])
    # chunks of one token, whose likelihood the cache keeps exactly, over the whole vocabulary
    return replace(found, logp_P=views.logp_C, logp_C=views.logp_C)


def _answers(
    batch: TensorBatch, logits_of: Callable[[Block, LossRows], Tensor], shared: int | None
) -> Answers:
    """Block by block: the rows of `logits_of` are the block's positions in chunks."""
    parts: list[Answers] = []
    for block in batch.blocks:
        rows = batch.rows.block(block)
        is_in_N = rows.chunk_N >= 0
        logp_PV = logits_of(block, rows).log_softmax(-1)
        true_P, chunk_P = rows.target_id_N[is_in_N], rows.chunk_N[is_in_N]
        is_known_P = true_P < logp_PV.shape[1]  # the teacher's columns may end before the student's
        gold_P = logp_PV.gather(1, true_P.clamp_max(logp_PV.shape[1] - 1)[:, None])[:, 0]
        gold_P = torch.where(is_known_P, gold_P, -torch.inf)
        top = logp_PV.topk(min(NUM_LIKELY, logp_PV.shape[1]), dim=1)
        parts.append(
            Answers(
                shared_top_P=_ints(logp_PV[:, :shared].argmax(1)),
                confidence_P=_floats(top.values[:, 0].exp()),
                is_correct_P=(top.indices[:, 0] == true_P).cpu().numpy(),
                logp_P=_floats(gold_P),
                likely_id_PK=_ints(top.indices),
                likely_p_PK=_floats(top.values.exp()),
                logp_C=_floats(chunk_logp(gold_P, chunk_P, len(rows.teacher_logp_C))),
            )
        )
    return _joined(parts)


def _joined(parts: list[Answers]) -> Answers:
    return Answers(
        shared_top_P=np.concatenate([part.shared_top_P for part in parts]),
        confidence_P=np.concatenate([part.confidence_P for part in parts]),
        is_correct_P=np.concatenate([part.is_correct_P for part in parts]),
        logp_P=np.concatenate([part.logp_P for part in parts]),
        likely_id_PK=np.concatenate([part.likely_id_PK for part in parts]),
        likely_p_PK=np.concatenate([part.likely_p_PK for part in parts]),
        logp_C=np.concatenate([part.logp_C for part in parts]),
    )


def _ints(values: Tensor) -> Ints:
    return values.int().cpu().numpy()


def _floats(values: Tensor) -> Floats:
    return values.float().cpu().numpy()
