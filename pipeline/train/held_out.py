"""Held-out likelihood while the student trains: the same stored masks at every evaluation.

Records that are trained on would flatter the student: those of the cache are refused.
"""

import math
from collections.abc import Iterator
from typing import Any

import polars as pl
from torch import nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from pipeline.cache.inspect import scan_examples
from pipeline.config.held_out import HeldOutConfig
from pipeline.config.recipe import Recipe
from pipeline.config.records import RecordsConfig
from pipeline.evaluate.heldout import HeldOut, HeldOutScores, draw_held_out, evaluate_held_out
from pipeline.records.source import index_records, read_part
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.output import TrainOutput
from pipeline.train.run_file import RUN_FILE
from pipeline.train.standing import HELD_OUT_NLL, Standing
from pipeline.train.trainer import StudentTrainer
from storage_schemas.errors import RecipeError
from storage_schemas.examples import Record

HELD_OUT_FILE = "held-out.parquet"
_RECORDS_PER_PART = 1000
_NAMED = 3  # of the records that an error is about


def open_held_out(recipe: Recipe, tokenizer: ChatTokenizer, output: TrainOutput) -> HeldOut | None:
    """The masks if they are stored, or those of the recipe's records, none of them in the cache.

    They depend on the records and the student's tokenizer, length and block size alone: every run
    over the same records is scored on the same masks. None where the recipe asks for no evaluation.
    """
    config, student = recipe.held_out, recipe.student
    if config is None:
        return None
    stored = output.folder / HELD_OUT_FILE
    # without run.json, a file that lies there is of no known run
    if stored.exists() and (output.folder / RUN_FILE).exists():
        return HeldOut.load(stored)
    held_out, _ = draw_held_out(
        held_out_records(config.records),
        tokenizer,
        length=student.length,
        block_size=student.block_size,
        max_records=config.max_records,
    )
    refuse_cached([record.record_id for record in held_out.records], recipe.cache.path)
    return held_out


def keep_held_out(held_out: HeldOut, output: TrainOutput) -> None:
    """Keeps the masks beside the run."""
    held_out.save(output.folder / HELD_OUT_FILE)
    output.keep(HELD_OUT_FILE)


def held_out_metrics(scores: HeldOutScores) -> dict[str, float]:
    """What a log entry says of an evaluation, over the responses' own tokens; NaN is left out.

    held_out_nll bounds the nats of a token; its error is the standard one, over records.
    held_out_nll_at_T is the mean over the tokens masked at time T.
    """
    content = scores.content
    metrics = {
        HELD_OUT_NLL: content.nll_bound,
        f"{HELD_OUT_NLL}_error": content.nll_bound_error,
        "held_out_accuracy": content.accuracy,
    }
    at_levels = zip(content.levels, content.nll_L.tolist(), strict=True)
    metrics |= {f"{HELD_OUT_NLL}_at_{level:g}": nll for level, nll in at_levels}
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


class HeldOutWatch(TrainerCallback):
    """Evaluates every so many steps and after the last; ends the run when its patience does.

    A student better than all before it is saved as a checkpoint too, so that what is kept as the
    best is never ahead of what a resumed run begins with.
    """

    def __init__(
        self,
        trainer: StudentTrainer,
        held_out: HeldOut,
        config: HeldOutConfig,
        *,
        mask_id: int,
        block_size: int,
    ) -> None:
        self._trainer = trainer
        self._held_out = held_out
        self._config = config
        self._mask_id = mask_id
        self._block_size = block_size

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """The figures join the log entry of this very step."""
        step = state.global_step
        if step % self._config.every_steps and step < state.max_steps:
            return
        assert model is not None, "the Trainer hands its model to every callback"
        with self._trainer.paused():
            metrics = held_out_metrics(self._scores(model))
        self._trainer.add_to_entry(metrics)
        control.should_log = True
        entry = {**metrics, "step": step}
        standing = Standing.of([*state.log_history, entry])
        is_over = standing.is_over(self._config.patience)
        if is_over or (standing.best is not None and standing.best.step == step):
            control.should_save = True
        if is_over:
            control.should_training_stop = True

    def _scores(self, model: nn.Module) -> HeldOutScores:
        return evaluate_held_out(
            self._trainer.ask(model, lambda student: student),  # the one that another may wrap
            self._held_out,
            mask_id=self._mask_id,
            block_size=self._block_size,
            call=lambda work: self._trainer.ask(model, work),
            share=self._trainer.share(),
        )


def held_out_records(config: RecordsConfig) -> Iterator[Record]:
    """The usable ones in order, each id once; a part is read when it is asked for."""
    index = index_records(config, _RECORDS_PER_PART)
    ids: set[str] = set()
    for part in index.parts:
        for record in read_part(config, index, part.number):
            if isinstance(record, Record) and record.id not in ids:
                ids.add(record.id)
                yield record


def refuse_cached(record_ids: list[str], cache: str) -> None:
    """Raise if any of these records, by its id, is in the cache."""
    held_out = pl.Series(record_ids, dtype=pl.String)
    cached = scan_examples(cache).select("record_id").unique()
    both = cached.filter(pl.col("record_id").is_in(held_out.implode())).collect()
    if len(both):
        names = sorted(both["record_id"])
        more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
        raise RecipeError(
            f"held_out.records: expected records that nobody trains on, got {len(names)} of "
            f"{len(record_ids)} that the cache at {cache} holds too: "
            f"{', '.join(map(repr, names[:_NAMED]))}{more}; name other records, or make the cache "
            f"without these"
        )
