"""transformers.Trainer with the student's loss: cross-entropy plus one distillation term.

Method, section 5. Every term enters as a total over the counts of the WHOLE optimizer step, so that
accumulation and the cut into micro-batches do not change the gradient.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME

from pipeline.evaluate.share import Share
from pipeline.objectives import LossTerm
from pipeline.student.call import open_forward
from pipeline.train.loss import Counts, StepParts, StudentLoss
from pipeline.train.pace import Pace
from pipeline.train.random_state import random_state, set_random_state
from pipeline.train.ranks import Ranks
from pipeline.train.sharding import (
    gather_optimizer,
    load_weights,
    save_weights,
    scatter_optimizer,
    settle_sharding,
)
from pipeline.train.state_file import read_state, write_state
from pipeline.train.tensors import TensorBatch

_T = TypeVar("_T")
_STATE_FILE = "training_state.safetensors"


class _Stream(IterableDataset[TensorBatch]):
    """Ready-made batches, in the form that a DataLoader takes."""

    def __init__(self, start: Callable[[], Iterator[TensorBatch]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[TensorBatch]:
        return self._start()


class StudentTrainer(Trainer):
    """Trains the student on a `StudentLoss`, blind to which objective is in force.

    `stream()` gives the batches from the first that this run has not seen.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        stream: Callable[[], Iterator[TensorBatch]],
        *,
        loss: StudentLoss,
        ranks: Ranks,
        stamp: Callable[[Path, int], None] = lambda folder, step: None,
        **options: Any,
    ) -> None:
        """`stamp(folder, step)` leaves in a saved student's folder what made it."""
        model = open_forward(model)
        self._ranks = ranks
        super().__init__(model=model, args=args, train_dataset=_Stream(stream), **options)
        self.model_accepts_loss_kwargs = True  # the loss is divided by whole-step counts already
        self._loss = loss
        self._stamp = stamp
        self._window = _Window()
        self._pace = Pace()
        self._added: dict[str, float] = {}
        self._num_taken = 0

    def train_from(
        self, checkpoint: str | None, *, is_over: Callable[[TrainerState], bool]
    ) -> bool:
        """Train to the end; False if the checkpoint is the end: `train` would take a step more."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            if state.global_step >= self.args.max_steps or is_over(state):
                self._load_from_checkpoint(checkpoint)
                state.is_world_process_zero = self.is_world_process_zero()  # not the writer's
                self.state = state
                return False
        self.train(resume_from_checkpoint=checkpoint)
        return True

    def paused(self) -> AbstractContextManager[None]:
        """A context for what is no step of training: its time counts for none."""
        return self._pace.paused()

    def ask(self, model: nn.Module, work: Callable[[PreTrainedModel], _T]) -> _T:
        """What the work makes of the student, run in the model's call, at training's precision."""
        with self.accelerator.autocast():
            return cast("_T", model(work))

    def share(self) -> Share:
        """This process's part of what all of them evaluate together."""
        return Share(rank=self._ranks.rank, count=self._ranks.size, total=self._ranks.sum)

    def add_to_entry(self, metrics: dict[str, float]) -> None:
        """These are part of the next log entry."""
        self._added |= metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers does, with a stamp."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.stamp(Path(output_dir or str(self.args.output_dir)))

    def stamp(self, folder: Path) -> None:
        """Leaves in a saved student's folder what made it."""
        self._stamp(folder, self.state.global_step)

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        with self.paused():
            super()._save_checkpoint(*args, **options)

    def get_train_dataloader(self) -> DataLoader[TensorBatch]:
        """The stream itself: it batches, shuffles and resumes."""
        return DataLoader(cast("Any", self.train_dataset), batch_size=None)

    def get_batch_samples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, epoch_iterator: Iterator[TensorBatch], num_batches: int, device: torch.device
    ) -> tuple[list[TensorBatch], Counts]:
        """The micro-batches of one optimizer step, and the counts of all of them together."""
        batches = self._pace.take(epoch_iterator, num_batches)
        self._num_taken = 0
        counts = torch.tensor(
            [
                [batch.num_maskable for batch in batches],
                [batch.num_chunks for batch in batches],
                [batch.num_tokens for batch in batches],
            ]
        )
        maskable, chunks, tokens = self._ranks.sum(counts.sum(1)).to(device)
        return batches, Counts(maskable=maskable, chunks=chunks, tokens=tokens)

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: nn.Module,
        inputs: TensorBatch,
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
    ) -> Tensor:
        """This micro-batch's share of the step's loss, times the ranks that are averaged over."""
        assert num_items_in_batch is not None, "training only"
        counts, progress = num_items_in_batch, self._progress()
        self._seed_dropout()

        def work(student: PreTrainedModel) -> tuple[Tensor, StepParts]:
            return self._loss(student, inputs, counts, progress)

        loss, parts = self.ask(model, work)
        self._window.add(parts, self.state.global_step)
        return loss * self._ranks.size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds, since the last entry, the terms' mean over steps and the measures' over items."""
        if "loss" in logs and not self._window.is_empty:
            logs = logs | self._window.close(self.state.global_step, self._ranks) | self._added
            logs |= self._pace.close(self._ranks.sum) | {"progress": self._progress()}
            self._added = {}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: TensorBatch) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Not counted: transformers looks for input ids that a batch of views does not have."""
        return 0

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does, then what this project wants of FSDP2."""
        super().create_accelerator_and_postprocess()
        settle_sharding(self.accelerator)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if state_dict:  # gathered from all processes, and so a tied weight twice
            parameters = cast("Any", self.model).named_parameters
            again = dict(parameters(remove_duplicate=False)).keys() - dict(parameters()).keys()
            state_dict = {name: x for name, x in state_dict.items() if name not in again}
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle that nothing reads
            folder = Path(output_dir or str(self.args.output_dir))
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if self.is_fsdp_enabled:
            save_weights(self._whole(), folder, is_first=self._ranks.is_first)
            optimizer = gather_optimizer(self._whole(), cast("Any", self.optimizer))
        else:
            optimizer = cast("dict[str, Any]", cast("Any", self.optimizer).state_dict())
        if self.args.should_save:
            scheduler = cast("Any", self.lr_scheduler).state_dict()
            write_state(folder / _STATE_FILE, {"optimizer": optimizer, "scheduler": scheduler})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint) / _STATE_FILE)
        if self.is_fsdp_enabled:
            whole: dict[str, Any] = state["optimizer"] if self._ranks.is_first else {}
            scatter_optimizer(self._whole(), cast("Any", self.optimizer), whole)
        else:
            cast("Any", self.optimizer).load_state_dict(state["optimizer"])
        cast("Any", self.lr_scheduler).load_state_dict(state["scheduler"])

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled:
            folder = Path(resume_from_checkpoint)
            load_weights(model or self._whole(), folder, is_first=self._ranks.is_first)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_rng_state(self, output_dir: str) -> None:
        write_state(Path(output_dir) / self._random_file, random_state())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """A process that the run did not have before has none to go on from."""
        if checkpoint is not None and (path := Path(checkpoint) / self._random_file).exists():
            set_random_state(read_state(path))

    @property
    def _random_file(self) -> str:
        return f"random-{self._ranks.rank}.safetensors"

    def _whole(self) -> nn.Module:
        return cast("nn.Module", self.model)

    def _prepare_inputs(self, inputs: TensorBatch) -> TensorBatch:  # pyright: ignore[reportIncompatibleMethodOverride]
        return inputs.to(self.args.device, non_blocking=True)

    def _seed_dropout(self) -> None:
        """By the micro-batch's number in the run, whichever process has it, also after a resume."""
        of_step = self._num_taken * self._ranks.size + self._ranks.rank
        per_step = self.args.gradient_accumulation_steps * self._ranks.size
        key = [self.args.seed, self.state.global_step * per_step + of_step]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        self._num_taken += 1

    def _progress(self) -> float:
        return self.state.global_step / self.state.max_steps


class _Window:
    """What the steps since the last log entry have added up to, on the device until it is read."""

    def __init__(self) -> None:
        self._parts = StepParts()
        self._first_step = 0

    @property
    def is_empty(self) -> bool:
        return not self._parts.means

    def add(self, parts: StepParts, step: int) -> None:
        """A micro-batch of the step after `step`."""
        if self.is_empty:
            self._first_step = step
        for name, value in parts.means.items():
            self._parts.add_mean(name, value.double())  # so that long windows do not round
        self._parts.add_measures(parts.measures)

    def close(self, step: int, ranks: Ranks) -> dict[str, float]:
        """The means up to `step`, over all processes; the next window begins."""
        steps = max(1, step - self._first_step)
        parts = ranks.gather(self._parts.to("cpu"))
        total = StepParts()
        for one in parts:  # a rank without a single chunk knows nothing of what chunks measure
            for name, value in one.means.items():
                total.add_mean(name, value)
            total.add_measures(one.measures)
        self._parts = StepParts()
        means = {name: value.item() / steps for name, value in total.means.items()}
        measures = {name: float(LossTerm.mean(term)) for name, term in total.measures.items()}
        return means | measures


class Reporter(TrainerCallback):
    """Hands every log entry on, and stops with a checkpoint when any process is asked to."""

    def __init__(
        self,
        on_log: Callable[[dict[str, float]], None],
        should_stop: Callable[[], bool],
        ranks: Ranks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_log = on_log
        self._should_stop = should_stop
        self._ranks = ranks
        self._clock = clock
        self._began, self._first_step = clock(), 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The time left is told by the steps since here."""
        self._began, self._first_step = self._clock(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Each entry about steps: which step of how many, and how many seconds are left.

        Without the Trainer's epoch, which a resume counts anew.
        """
        if not logs or "loss" not in logs or not self._ranks.is_first:
            return
        step, steps = state.global_step, state.max_steps
        pace = (self._clock() - self._began) / max(1, step - self._first_step)
        place = {"step": step, "steps": steps, "seconds_left": (steps - step) * pace}
        entry = {name: value for name, value in logs.items() if name != "epoch"}
        self._on_log({name: float(value) for name, value in (place | entry).items()})

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Asked after every optimizer step; all stop after the same one.

        A checkpoint ends an entry: what a resumed run averages begins with its own first step.
        """
        if self._ranks.any(self._should_stop()):
            control.should_save = True
            control.should_training_stop = True
        if control.should_save:
            control.should_log = True
