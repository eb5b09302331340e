"""transformers.Trainer with the student's loss: cross-entropy plus one distillation term.

Method, section 5. Every term enters as a total over the counts of the WHOLE optimizer step, so that
accumulation and the cut into micro-batches do not change the gradient.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from pipeline.objectives import gold_logp, masked_nll_from_logp
from pipeline.student.forward import head, masked_hidden
from pipeline.train.build import Distillation, StudentAnswer
from pipeline.train.tensors import TensorBatch

Counts = dict[str, Tensor]


class _Stream(IterableDataset[TensorBatch]):
    """Ready-made batches, in the form that a DataLoader takes."""

    def __init__(self, start: Callable[[], Iterator[TensorBatch]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[TensorBatch]:
        return self._start()


class StudentTrainer(Trainer):
    """Trains the student; what the loss is comes in as a `Distillation` (None: CE alone).

    `stream()` gives the batches from the first that this run has not seen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        stream: Callable[[], Iterator[TensorBatch]],
        *,
        distillation: Distillation | None,
        mask_id: int,
        block_size: int,
        **options: Any,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=_Stream(stream), **options)
        self.model_accepts_loss_kwargs = True  # the loss is divided by whole-step counts already
        self._distillation = distillation
        self._mask_id = mask_id
        self._block_size = block_size
        self._sums: dict[str, float] = {}
        self._first_step = 0  # where the sums begin

    def train_from(self, checkpoint: str | None) -> None:
        """Train to the end; after a checkpoint of the last step, `train` would take one more."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            if state.global_step >= self.args.max_steps:
                self._load_from_checkpoint(checkpoint)
                self.state = state
                return
        self.train(resume_from_checkpoint=checkpoint)

    def get_train_dataloader(self) -> DataLoader[TensorBatch]:
        """The stream itself: it batches, shuffles and resumes."""
        return DataLoader(cast("Any", self.train_dataset), batch_size=None)

    def get_batch_samples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, epoch_iterator: Iterator[TensorBatch], num_batches: int, device: torch.device
    ) -> tuple[list[TensorBatch], Counts]:
        """The micro-batches of one optimizer step, and the counts of all of them together."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = {
            "maskable": sum(int(batch["is_target_BS"].sum()) for batch in batches),
            "chunks": sum(int(batch["is_active_BC"].sum()) for batch in batches),
            "tokens": sum(
                len(batch["token_position_M"]) for batch in batches if "token_position_M" in batch
            ),
        }
        return batches, {name: torch.tensor(count, device=device) for name, count in counts.items()}

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: PreTrainedModel,
        inputs: TensorBatch,
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
    ) -> Tensor:
        """CE plus weight times distillation, as this micro-batch's share of the step's loss."""
        assert num_items_in_batch is not None, "training only"
        counts = num_items_in_batch
        is_masked_BS = inputs["is_masked_BS"]
        with self.accelerator.autocast():  # it wraps model.forward alone, which is not called
            hidden_NH = masked_hidden(
                model,
                inputs["student_ids_BS"],
                is_masked_BS,
                inputs["is_real_BS"],
                mask_id=self._mask_id,
                block_size=self._block_size,
            )
            logits_NV = cast("Tensor", head(model)(hidden_NH))
        logp_N = gold_logp(logits_NV, inputs["student_ids_BS"][is_masked_BS])
        time_N = inputs["time_B"][:, None].expand_as(is_masked_BS)[is_masked_BS]
        nll = masked_nll_from_logp(logp_N, time_N, counts["maskable"])
        loss = nll.mean()
        parts = {"masked_nll": loss.detach()}
        if self._distillation is not None:
            term = self._distillation.term(
                StudentAnswer(logits_NV=logits_NV, logp_N=logp_N), inputs, self._progress()
            )
            mean = term.total / counts[self._distillation.normalizer].clamp_min(1)
            loss = loss + self._distillation.weight * mean
            parts[self._distillation.name] = mean.detach()
        self._add(parts)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the terms' means since the last entry."""
        if "loss" in logs and self._sums:
            steps = max(1, self.state.global_step - self._first_step)
            logs = logs | {name: total / steps for name, total in self._sums.items()}
            logs["progress"] = self._progress()
            self._sums = {}
        super().log(logs, start_time)

    def _progress(self) -> float:
        return self.state.global_step / self.state.max_steps

    def _add(self, parts: dict[str, Tensor]) -> None:
        if not self._sums:
            self._first_step = self.state.global_step
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.item()


class Reporter(TrainerCallback):
    """Hands every log entry on, and stops with a checkpoint when asked to."""

    def __init__(
        self, on_log: Callable[[dict[str, float]], None], should_stop: Callable[[], bool]
    ) -> None:
        self._on_log = on_log
        self._should_stop = should_stop

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Each entry, with its step; not the Trainer's epoch, which a resume counts anew."""
        if logs:
            entry = {name: value for name, value in logs.items() if name != "epoch"}
            self._on_log({"step": float(state.global_step), **entry})

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Asked after every optimizer step."""
        if self._should_stop():
            control.should_save = True
            control.should_training_stop = True
