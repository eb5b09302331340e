"""Stage 2: train a student from a cache alone; no teacher code is imported here."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import PrinterCallback, TrainerState, set_seed

from pipeline.cache.reader import CacheReader
from pipeline.config.objective import TokenObjective
from pipeline.config.recipe import Recipe, SharedTokenizer
from pipeline.evaluate.heldout import HeldOut
from pipeline.stream.loader import CacheStream
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.best import BestKeeper
from pipeline.train.build import Distillation, build_distillation
from pipeline.train.check import check_cache
from pipeline.train.expand import expander
from pipeline.train.held_out import HELD_OUT_FILE, HeldOutWatch, open_held_out
from pipeline.train.make import make_trainer, train_device
from pipeline.train.metrics_log import MetricsWriter
from pipeline.train.output import CheckpointKeeper, TrainOutput, open_output
from pipeline.train.run_file import (
    FINAL_FOLDER,
    RUN_FILE,
    SUMMARY_FILE,
    TrainSummary,
    found_summary,
    run_of,
    stamp_of,
    write_run,
    write_summary,
)
from pipeline.train.standing import HELD_OUT_NLL, Standing
from pipeline.train.tensors import TensorBatch, as_tensors
from pipeline.train.trainer import Reporter, StudentTrainer
from storage_schemas.errors import RecipeError

__all__ = ["TrainSummary", "num_steps", "run_student_train"]


def run_student_train(
    recipe: Recipe,
    *,
    on_log: Callable[[dict[str, float]], None] = lambda logs: None,
    should_stop: Callable[[], bool] = lambda: False,
    shows_progress: bool = True,
) -> TrainSummary:
    """Train, or go on from the last checkpoint, or find the run finished already.

    Layout of train.output: run.json (what this run is), checkpoint-N/ (resume), final/ (the
    student), summary.json (written last), metrics.parquet (the log), runs/ (TensorBoard); with
    held-out records also held-out.parquet (their masks) and best/ (the best student).
    """
    with open_output(recipe.train.output) as output:
        return _train(recipe, output, on_log, should_stop, shows_progress=shows_progress)


def _train(
    recipe: Recipe,
    output: TrainOutput,
    on_log: Callable[[dict[str, float]], None],
    should_stop: Callable[[], bool],
    *,
    shows_progress: bool,
) -> TrainSummary:
    reader = CacheReader.open(recipe.cache.path)
    tokenizer = check_cache(reader, recipe)
    run = run_of(recipe, reader)
    output.fetch(RUN_FILE, SUMMARY_FILE, HELD_OUT_FILE)
    summary = found_summary(output, run)
    if summary is not None:
        return summary
    _make_folder(output.folder)
    output.fetch_checkpoint()
    began = time.monotonic()
    held_out = _held_out(recipe, tokenizer, output)
    basis = reader.read_basis()  # also where no objective needs it: a damaged cache is refused
    has_tokens = isinstance(recipe.objective, TokenObjective)
    device = train_device(recipe)
    distillation = build_distillation(
        recipe.objective,
        shared_vocab=recipe.pipeline.vocab
        if isinstance(recipe.pipeline, SharedTokenizer)
        else None,
        expand=expander(reader.identity.kept, basis, device) if has_tokens else None,
    )
    cache = CacheStream(
        reader,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        has_tokens=has_tokens,
        basis=basis,
    )
    set_seed(recipe.train.seed)
    trainer, checkpoint = make_trainer(
        _with_output(recipe, output.folder),
        tokenizer,
        distillation,
        lambda skip, rows: _tensors(cache, recipe, distillation, skip, rows),
        max_steps=num_steps(recipe, cache.num_views),
        shows_progress=shows_progress,
        stamp=stamp_of(recipe, reader),
    )
    write_run(output, run)  # nothing that was refused leaves a claim behind
    trainer.add_callback(Reporter(on_log, should_stop))
    trainer.add_callback(CheckpointKeeper(output))
    trainer.remove_callback(PrinterCallback)  # `on_log` tells it
    metrics, best = (
        MetricsWriter(output),
        BestKeeper(trainer, output, lambda folder: trainer.save_model(str(folder))),
    )
    trainer.add_callback(metrics)
    trainer.add_callback(best)
    if held_out is not None:
        _watch(trainer, held_out, recipe, tokenizer, output)
    if not trainer.train_from(checkpoint, is_over=lambda state: _is_over_early(state, recipe)):
        best.keep(trainer.state)
    metrics.keep(trainer.state)
    return _finish(trainer, recipe, output, time.monotonic() - began)


def num_steps(recipe: Recipe, num_views: int) -> int:
    """Optimizer steps of the run: the epochs' views, or max_steps where that is fewer."""
    per_step = recipe.train.batch_size * recipe.train.accumulation
    steps = max(1, math.ceil(recipe.train.epochs * num_views / per_step))
    return min(steps, recipe.train.max_steps or steps)


def _held_out(recipe: Recipe, tokenizer: ChatTokenizer, output: TrainOutput) -> HeldOut | None:
    if recipe.held_out is None:
        return None
    # without run.json, a file that lies there is of no known run
    stored = output.folder / HELD_OUT_FILE if (output.folder / RUN_FILE).exists() else None
    return open_held_out(
        stored, recipe.held_out, recipe.student, tokenizer, cache=recipe.cache.path
    )


def _watch(
    trainer: StudentTrainer,
    held_out: HeldOut,
    recipe: Recipe,
    tokenizer: ChatTokenizer,
    output: TrainOutput,
) -> None:
    """Evaluates as the recipe says, on masks that are kept."""
    assert recipe.held_out is not None, "there are held-out records"
    if trainer.is_world_process_zero():
        held_out.save(output.folder / HELD_OUT_FILE)
        output.keep(HELD_OUT_FILE)
    trainer.add_callback(
        HeldOutWatch(
            trainer,
            held_out,
            recipe.held_out,
            mask_id=tokenizer.mask_id,
            block_size=recipe.student.block_size,
        )
    )


def _is_over_early(state: TrainerState, recipe: Recipe) -> bool:
    patience = None if recipe.held_out is None else recipe.held_out.patience
    return Standing.of(state.log_history).is_over(patience)


def _finish(
    trainer: StudentTrainer, recipe: Recipe, output: TrainOutput, seconds: float
) -> TrainSummary:
    """The summary; of a run that has come to its end, also the student and the summary's file."""
    is_at_end = trainer.state.global_step >= trainer.state.max_steps
    stopped_early = not is_at_end and _is_over_early(trainer.state, recipe)
    best = Standing.of(trainer.state.log_history).best
    metrics = {
        name: float(value)
        for entry in trainer.state.log_history
        if "loss" in entry  # the Trainer's closing entry is of the time since a resume alone
        for name, value in entry.items()
        if name not in ("step", "epoch")
    }
    summary = TrainSummary(
        output=output.place_of(FINAL_FOLDER),
        steps=trainer.state.global_step,
        seconds=seconds,
        is_complete=is_at_end or stopped_early,
        metrics=metrics if best is None else metrics | {f"{HELD_OUT_NLL}_best": best.nll},
        stopped_early=stopped_early,
        best_step=None if best is None else best.step,
    )
    if summary.is_complete:
        trainer.save_model(str(output.folder / FINAL_FOLDER))
        output.keep(FINAL_FOLDER)
        write_summary(output, summary)
    return summary


def _tensors(
    cache: CacheStream, recipe: Recipe, distillation: Distillation | None, skip: int, rows: int
) -> Iterator[TensorBatch]:
    for batch in cache.batches(skip=skip):
        yield as_tensors(
            batch,
            temperature=distillation.temperature if distillation is not None else None,
            block_size=recipe.student.block_size,
            rows_per_block=rows,
        )


def _with_output(recipe: Recipe, folder: Path) -> Recipe:
    train = recipe.train.model_copy(update={"output": str(folder)})
    return recipe.model_copy(update={"train": train})


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"train.output: cannot write to {output}: {error}") from error
