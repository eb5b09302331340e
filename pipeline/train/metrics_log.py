"""A run's log as one Parquet file that Polars reads: a row for every log entry.

The file shows the Trainer's own log_history, which every checkpoint holds. So a resumed run's file
is that of the undisturbed run: what was logged after the checkpoint goes, and comes again. It is
replaced whole, so a reader never finds half of it.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.storage.address import is_remote
from pipeline.storage.connection import connect, talking_to
from pipeline.train.output import TrainOutput
from storage_schemas.errors import CacheMissingError

METRICS_FILE = "metrics.parquet"
_PAUSE = 100  # times what a writing takes: the share of the time that goes into them stays small
_NOT_KEPT = ("step", "epoch")  # a resume counts the epochs anew


def scan_metrics(run: str | Path) -> pl.LazyFrame:
    """The log of the run whose output is at this folder or URL, as it stands now.

    One row a log entry, in order of `step`; null where an entry did not say it.
    """
    if not is_remote(run):
        path = Path(run) / METRICS_FILE
        if not path.exists():
            raise _no_metrics(run)
        return pl.scan_parquet(path, glob=False)
    try:
        with talking_to(str(run)):
            data = connect(str(run)).get(METRICS_FILE).bytes()
    except FileNotFoundError as error:
        raise _no_metrics(run) from error
    return pl.read_parquet(BytesIO(bytes(data))).lazy()


def metrics_frame(history: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """The entries about steps as rows: `step`, `loss`, then what else they say, by name.

    All but `step` are float64.
    """
    entries = [entry for entry in history if "loss" in entry]  # not the Trainer's closing one
    said = {name for entry in entries for name in entry if name not in _NOT_KEPT}
    names = sorted(said, key=lambda name: (name != "loss", name))
    columns: dict[str, list[Any]] = {"step": [int(entry["step"]) for entry in entries]}
    columns |= {name: [_number(entry.get(name)) for entry in entries] for name in names}
    return pl.DataFrame(columns, schema={"step": pl.Int64, **dict.fromkeys(names, pl.Float64)})


class MetricsWriter(TrainerCallback):
    """Keeps the file up to date: soon after an entry, and with each checkpoint."""

    def __init__(self, output: TrainOutput, clock: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._clock = clock
        self._not_before = float("-inf")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Written unless the last writing was just now; one process writes."""
        began = self._clock()
        if state.is_world_process_zero and began >= self._not_before:
            self._write(state)
            now = self._clock()
            self._not_before = now + _PAUSE * (now - began)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """A checkpoint is never ahead of the file for long."""
        self.keep(state)

    def keep(self, state: TrainerState) -> None:
        """Writes all there is, for after the run too."""
        if state.is_world_process_zero:
            self._write(state)
            self._output.keep(METRICS_FILE)

    def _write(self, state: TrainerState) -> None:
        frame = metrics_frame(state.log_history)
        scratch = self._output.folder / f".{METRICS_FILE}.tmp"
        with scratch.open("wb") as file:
            frame.write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._output.folder / METRICS_FILE)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _no_metrics(run: str | Path) -> CacheMissingError:
    return CacheMissingError(
        f"expected a run's log at {run}/{METRICS_FILE}, got none; name the train.output of a run "
        f"that has logged something"
    )
