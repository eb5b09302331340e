"""The teacher's dense rows: a live teacher's, or expanded from what a cache keeps.

Axes: M masked aligned position, V vocabulary that both models share.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.targets.expand import expand_even, expand_mean_logit, expand_sketch
from pipeline.targets.sketch import SketchDecoder
from pipeline.train.tensors import DenseRows, KeptRows, TeacherRows
from storage_schemas.basis import Basis
from storage_schemas.identity import KeptIdentity, MeanLogitTail, SketchTail

Expand = Callable[[TeacherRows, float], Tensor]
"""The teacher's rows and a temperature in, its logits [M, V] out."""


def live_rows(rows: TeacherRows, temperature: float) -> Float[Tensor, "M V"]:
    """A live teacher's logits, as they are at any temperature."""
    del temperature
    assert isinstance(rows, DenseRows), "a live teacher's rows"
    return rows.logits_MV


def sketch_expander(decoder: SketchDecoder) -> Expand:
    """How sketches become dense, with a decoder that lies on the student's device."""

    def expand(rows: TeacherRows, temperature: float) -> Float[Tensor, "M V"]:
        assert isinstance(rows, KeptRows), "a cache's rows"
        return expand_sketch(
            decoder,
            rows.sketch_MR,
            rows.logsumexp_M,
            rows.gold_id_M,
            rows.gold_logit_M,
            temperature=temperature,
        )

    return expand


def expander(kept: KeptIdentity, basis: Basis | None, device: torch.device) -> Expand:
    """How the rows of a cache that keeps this become dense; what is needed for it goes to `device`.

    Everything beside the rows themselves comes with them: token ids, masks, logsumexps.
    """
    if isinstance(kept.tail, SketchTail):
        assert basis is not None, "a sketch is decoded with its basis"
        return sketch_expander(SketchDecoder.of(basis, device))
    base_V = None
    if isinstance(kept.tail, MeanLogitTail):
        assert basis is not None, "the mean logit is in the basis"
        base_V = torch.from_numpy(basis.base_V).to(device)

    def expand(rows: TeacherRows, temperature: float) -> Float[Tensor, "M V"]:
        assert isinstance(rows, KeptRows), "a cache's rows"
        top_k = (rows.ids_MK, rows.logits_MK, rows.logsumexp_M)
        if base_V is not None:
            return expand_mean_logit(*top_k, base_V, temperature=temperature)
        return expand_even(*top_k, vocab_size=kept.vocab_size, temperature=temperature)

    return expand
