"""A micro-batch's share of the loss of its optimizer step: cross-entropy plus distillation.

Method, section 5. Axes: N masked position, R those of a block, V vocabulary.
"""

from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel

from pipeline.objectives import LossTerm, gold_logp, masked_nll_from_logp
from pipeline.student.forward import head, masked_hidden
from pipeline.train.build import Distillation, StudentAnswer
from pipeline.train.head_loss import head_loss
from pipeline.train.tensors import Block, TensorBatch

MASKED_NLL = "masked_nll"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Over what the means of a WHOLE optimizer step are taken, however it is cut."""

    maskable: Tensor
    chunks: Tensor
    tokens: Tensor


@dataclass(slots=True)
class StepParts:
    """What a micro-batch adds to its step.

    means: this share of each term's mean. measures: sums and counts of what is watched beside them.
    """

    means: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    measures: dict[str, LossTerm] = field(default_factory=dict[str, LossTerm])

    def add_mean(self, name: str, value: Tensor) -> None:
        """One block's share."""
        value = value.detach()
        self.means[name] = self.means[name] + value if name in self.means else value

    def add_measures(self, measures: dict[str, LossTerm]) -> None:
        """One block's sums."""
        for name, term in measures.items():
            self.measures[name] = self.measures[name] + term if name in self.measures else term

    def to(self, device: str) -> "StepParts":
        """The same on a device."""
        return StepParts(
            means={name: value.to(device) for name, value in self.means.items()},
            measures={
                name: LossTerm(term.total.to(device), term.count.to(device))
                for name, term in self.measures.items()
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentLoss:
    """What a student is trained on; without a distillation it is cross-entropy alone."""

    distillation: Distillation | None
    mask_id: int
    block_size: int

    def __call__(
        self, model: PreTrainedModel, batch: TensorBatch, counts: Counts, progress: float
    ) -> tuple[Tensor, StepParts]:
        """CE plus weight times distillation: totals of this batch over the counts of the step."""
        hidden_NH = masked_hidden(
            model,
            batch.student_ids_BS,
            batch.is_masked_BS,
            mask_id=self.mask_id,
            block_size=self.block_size,
            example_BS=batch.example_BS,
        )
        parts = StepParts()

        def loss_of(logits_RV: Tensor, block: Block) -> Tensor:
            return self._block_loss(logits_RV, batch, block, counts, progress, parts)

        loss = head_loss(head(model), hidden_NH, batch.blocks, loss_of)
        parts.measures["time"] = LossTerm.over_all(batch.time_E)
        return loss, parts

    def _block_loss(
        self,
        logits_RV: Tensor,
        batch: TensorBatch,
        block: Block,
        counts: Counts,
        progress: float,
        parts: StepParts,
    ) -> Tensor:
        rows = batch.rows.block(block)
        logp_R = gold_logp(logits_RV, rows.target_id_N)
        loss = masked_nll_from_logp(logp_R, rows.time_N, counts.maskable).mean()
        parts.add_mean(MASKED_NLL, loss)
        if self.distillation is None:
            return loss
        answer = StudentAnswer(logits_NV=logits_RV, logp_N=logp_R)
        distilled = self.distillation.term(answer, rows, progress)
        count = counts.chunks if self.distillation.normalizer == "chunks" else counts.tokens
        mean = distilled.term.total / count.clamp_min(1)
        parts.add_mean(self.distillation.name, mean)
        parts.add_measures(distilled.measures)
        return loss + self.distillation.weight * mean
