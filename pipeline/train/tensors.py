"""A batch as torch tensors, in the flat dictionary that transformers.Trainer moves to a device."""

from typing import Any

import torch
from torch import Tensor

from storage_schemas.batch import Batch
from storage_schemas.targets import KeptTargets

TensorBatch = dict[str, Tensor]


def as_tensors(batch: Batch, *, temperature: float | None) -> TensorBatch:
    """The batch's arrays under their own names; kept rows with the logsumexp at `temperature`.

    teacher_gold_logit_M is the true token's logit: its log-likelihood over the whole vocabulary
    plus the logsumexp over the shared part, which differ by what lies outside it.
    """
    tensors: dict[str, Any] = {
        "student_ids_BS": torch.from_numpy(batch.student_ids_BS).long(),
        "is_real_BS": torch.from_numpy(batch.is_real_BS),
        "is_target_BS": torch.from_numpy(batch.is_target_BS),
        "is_masked_BS": torch.from_numpy(batch.is_masked_BS),
        "time_B": torch.from_numpy(batch.time_B),
        "chunk_BS": torch.from_numpy(batch.chunk_BS).long(),
        "is_active_BC": torch.from_numpy(batch.is_active_BC),
        "teacher_logp_BC": torch.from_numpy(batch.teacher_logp_BC),
    }
    if batch.tokens is None:
        return tensors
    tensors["token_position_M"] = torch.from_numpy(batch.token_position_M).long()
    if isinstance(batch.tokens, KeptTargets):
        assert temperature is not None, "token targets are read at a temperature"
        column = batch.tokens.temperatures.index(temperature)
        tensors["teacher_ids_MK"] = torch.from_numpy(batch.tokens.ids_MK).long()
        tensors["teacher_logits_MK"] = torch.from_numpy(batch.tokens.logits_MK)
        tensors["teacher_logsumexp_M"] = torch.from_numpy(batch.tokens.logsumexp_MJ[:, column])
        tensors["teacher_sketch_MR"] = torch.from_numpy(batch.tokens.sketch_MR)
        plain = batch.tokens.logsumexp_MJ[:, batch.tokens.temperatures.index(1.0)]
        tensors["teacher_gold_logit_M"] = torch.from_numpy(batch.tokens.gold_logp_M + plain)
    else:
        tensors["teacher_logits_MV"] = torch.from_numpy(batch.tokens.logits_MV)
    return tensors
