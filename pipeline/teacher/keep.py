"""What is kept of a teacher's rows, computed in whatever process holds the teacher.

Every backend calls `RowKeeper` on its rows, so that what they keep differs by no more than their
logits do. Axes: M answered position, H hidden size, V the teacher's vocabulary, K kept logit,
J temperature, R sketch dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pipeline.objectives.likelihood import gold_logp
from pipeline.targets.sketch import SketchEncoder
from pipeline.targets.top_k import keep_top_k, logsumexp_at
from storage_schemas.basis import Basis
from storage_schemas.identity import KeptIdentity

_LOGITS_A_BLOCK = 2**25


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepChunks:
    """Keep the true token's log-likelihood, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeepTokens:
    """Also, of the first `vocab_size` logits: the k largest, logsumexps, and the row's sketch.

    basis: that of the sketch; None, or of rank 0, for none. Two of them are equal only if they are
    one object: a basis is too large to be compared.
    """

    k: int
    temperatures: tuple[float, ...]
    vocab_size: int
    basis: Basis | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepHidden:
    """Also the last hidden states, after the final norm: what a calibration reads."""


Keep = KeepChunks | KeepTokens | KeepHidden


def keep_of(kept: KeptIdentity, basis: Basis | None) -> Keep:
    """What a cache keeps of each row."""
    if not kept.has_tokens:
        return KeepChunks()
    return KeepTokens(
        k=kept.top_k,
        temperatures=kept.temperatures,
        vocab_size=kept.vocab_size,
        basis=basis,
    )


def rows_at_once(vocab_size: int) -> int:
    """Rows whose float32 logits take 128 MiB, whatever the vocabulary; one at least."""
    return max(1, _LOGITS_A_BLOCK // vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """The kept numbers of some rows; what is not kept has a width of 0.

    gold_logp_M is z[x] - logsumexp(z) of the true token over the whole vocabulary, in nats; where
    it is not finite, the teacher's answer is not, and the rest of the row means nothing.
    """

    gold_logp_M: NDArray[np.float32]
    ids_MK: NDArray[np.int32]
    logits_MK: NDArray[np.float32]
    logsumexp_MJ: NDArray[np.float32]
    sketch_MR: NDArray[np.int16]
    hidden_MH: NDArray[np.float32]

    @staticmethod
    def joined(parts: Sequence["KeptRows"]) -> "KeptRows":
        """The rows of one part or more, one after the other."""
        return KeptRows(
            gold_logp_M=np.concatenate([one.gold_logp_M for one in parts]),
            ids_MK=np.concatenate([one.ids_MK for one in parts]),
            logits_MK=np.concatenate([one.logits_MK for one in parts]),
            logsumexp_MJ=np.concatenate([one.logsumexp_MJ for one in parts]),
            sketch_MR=np.concatenate([one.sketch_MR for one in parts]),
            hidden_MH=np.concatenate([one.hidden_MH for one in parts]),
        )


@dataclass(frozen=True, slots=True)
class RowKeeper:
    """A `Keep` made ready on the device that runs the teacher."""

    keep: Keep
    encoder: SketchEncoder | None

    @classmethod
    def of(cls, keep: Keep, device: torch.device) -> "RowKeeper":
        """Copies the basis to the device, where there is one."""
        basis = keep.basis if isinstance(keep, KeepTokens) else None
        encoder = None if basis is None or not basis.rank else SketchEncoder.of(basis, device)
        return cls(keep, encoder)

    @torch.inference_mode()
    def __call__(
        self,
        hidden_MH: Float[Tensor, "M H"],
        logits_MV: Float[Tensor, "M V"],
        gold_M: Int[Tensor, " M"],
    ) -> KeptRows:
        """What is kept of these rows, of which `gold_M` are the true tokens."""
        logp_M = gold_logp(logits_MV, gold_M)
        is_finite_M = logp_M.isfinite()
        if not is_finite_M.all():  # NaN would spread over a block's factorizations
            hidden_MH = hidden_MH.where(is_finite_M[:, None], 0)
            logits_MV = logits_MV.where(is_finite_M[:, None], 0)
        keep, rows = self.keep, len(logits_MV)
        ids_MK = logits_MK = logsumexp_MJ = sketch_MR = logits_MV.new_empty(rows, 0)
        if isinstance(keep, KeepTokens):
            shared_MV = logits_MV[:, : keep.vocab_size]
            ids_MK, logits_MK = keep_top_k(shared_MV, k=keep.k)
            logsumexp_MJ = logsumexp_at(shared_MV, keep.temperatures)
            if self.encoder is not None:
                sketch_MR = self.encoder.encode(hidden_MH, shared_MV)
        wanted_MH = hidden_MH if isinstance(keep, KeepHidden) else hidden_MH[:, :0]
        return KeptRows(
            gold_logp_M=logp_M.float().cpu().numpy(),
            ids_MK=ids_MK.int().cpu().numpy(),
            logits_MK=logits_MK.float().cpu().numpy(),
            logsumexp_MJ=logsumexp_MJ.float().cpu().numpy(),
            sketch_MR=sketch_MR.short().cpu().numpy(),
            hidden_MH=wanted_MH.float().cpu().numpy(),
        )
