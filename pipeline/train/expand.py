"""The teacher's dense rows of a batch: live, or expanded from what a cache keeps.

Axes: M masked aligned position, V vocabulary that both models share.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.targets.expand import expand_even, expand_mean_logit, expand_sketch
from pipeline.targets.sketch import SketchDecoder
from pipeline.train.tensors import TensorBatch
from storage_schemas.basis import Basis
from storage_schemas.identity import KeptIdentity, MeanLogitTail, SketchTail

Expand = Callable[[TensorBatch, float], Tensor]
"""A batch and a temperature in, the teacher's logits [M, V] at its masked aligned positions out."""


def live_rows(batch: TensorBatch, temperature: float) -> Float[Tensor, "M V"]:
    """A live teacher's logits, as they are at any temperature."""
    del temperature
    return batch["teacher_logits_MV"]


def expander(kept: KeptIdentity, basis: Basis | None, device: torch.device) -> Expand:
    """How the rows of a cache that keeps this become dense; what is needed for it goes to `device`.

    Everything beside the rows themselves comes from the batch: token ids, masks, logsumexps.
    """
    if isinstance(kept.tail, SketchTail):
        assert basis is not None, "a sketch is decoded with its basis"
        decoder = SketchDecoder.of(basis, device)
        return lambda batch, temperature: expand_sketch(
            decoder,
            batch["teacher_sketch_MR"],
            batch["teacher_logsumexp_M"],
            batch["student_ids_BS"].flatten()[batch["token_position_M"]],
            batch["teacher_gold_logit_M"],
            temperature=temperature,
        )
    if isinstance(kept.tail, MeanLogitTail):
        assert basis is not None, "the mean logit is in the basis"
        base_V = torch.from_numpy(basis.base_V).to(device)
        return lambda batch, temperature: expand_mean_logit(
            batch["teacher_ids_MK"],
            batch["teacher_logits_MK"],
            batch["teacher_logsumexp_M"],
            base_V,
            temperature=temperature,
        )
    return lambda batch, temperature: expand_even(
        batch["teacher_ids_MK"],
        batch["teacher_logits_MK"],
        batch["teacher_logsumexp_M"],
        vocab_size=kept.vocab_size,
        temperature=temperature,
    )
