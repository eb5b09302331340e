"""Stage 2: train a student from a cache alone; no teacher code is imported here."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from transformers import PrinterCallback, TrainerState, set_seed

from pipeline.cache.reader import CacheReader
from pipeline.config.objective import TokenObjective
from pipeline.config.recipe import Recipe, SharedTokenizer
from pipeline.evaluate.heldout import HeldOut
from pipeline.stream.collate import collate
from pipeline.stream.loader import CacheStream
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.best import BestKeeper
from pipeline.train.build import build_distillation
from pipeline.train.check import check_cache
from pipeline.train.expand import expander
from pipeline.train.finish import save_student
from pipeline.train.held_out import (
    HELD_OUT_FILE,
    HeldOutWatch,
    keep_held_out,
    open_held_out,
)
from pipeline.train.make import make_trainer, train_device, uses_cpu
from pipeline.train.metrics_log import MetricsWriter
from pipeline.train.output import CheckpointKeeper, TrainOutput, open_output
from pipeline.train.ranks import Ranks
from pipeline.train.run_file import (
    FINAL_FOLDER,
    RUN_FILE,
    SUMMARY_FILE,
    found_summary,
    run_of,
    stamp_of,
    write_run,
    write_summary,
)
from pipeline.train.sharding import kind_of_sharding, sharding
from pipeline.train.standing import HELD_OUT_NLL, Standing
from pipeline.train.summary import TrainSummary
from pipeline.train.tensors import as_tensors
from pipeline.train.trainer import Reporter, StudentTrainer
from storage_schemas.basis import Basis
from storage_schemas.errors import RecipeError

__all__ = ["TrainSummary", "num_steps", "run_student_train"]

OnLog = Callable[[dict[str, float]], None]


def run_student_train(
    recipe: Recipe,
    *,
    on_log: OnLog = lambda logs: None,
    should_stop: Callable[[], bool] = lambda: False,
    shows_progress: bool = True,
) -> TrainSummary:
    """Train, or go on from the last checkpoint, or find the run finished already.

    Layout of train.output: run.json (what this run is), checkpoint-N/ (resume), final/ (the
    student), summary.json (written last), metrics.parquet (the log), runs/ (TensorBoard); with
    held-out records also held-out.parquet (their masks) and best/ (the best student).
    """
    ranks = Ranks.join(uses_cpu=uses_cpu(recipe))
    reader = CacheReader.open(recipe.cache.path)
    tokenizer = check_cache(reader, recipe)
    run = run_of(recipe, reader)
    with open_output(recipe.train.output) as output:
        output.fetch(RUN_FILE, SUMMARY_FILE, HELD_OUT_FILE)
        summary = found_summary(output, run)
        if summary is not None:
            return summary
        _make_folder(output.folder)
        output.fetch_checkpoint()
        held_out = open_held_out(recipe, tokenizer, output)
        began = time.monotonic()
        basis = reader.read_basis()  # also where no objective needs it: damage is to be refused
        with (
            _open_stream(recipe, reader, basis, ranks) as stream,
            sharding(kind_of_sharding(recipe)),
        ):
            trainer, checkpoint = _make_trainer(
                _with_output(recipe, output.folder),
                reader,
                basis,
                tokenizer,
                stream,
                ranks,
                shows_progress=shows_progress,
            )
            del basis  # the decoder is its own copy
            ranks.wait()  # all have read what is there
            if ranks.is_first:
                write_run(output, run)  # nothing that was refused leaves a claim behind
                if held_out is not None:
                    keep_held_out(held_out, output)
            trainer.add_callback(Reporter(on_log, should_stop, ranks))
            trainer.add_callback(CheckpointKeeper(output, ranks))
            _train(recipe, trainer, checkpoint, held_out, tokenizer.mask_id, output, ranks)
            return _finish(trainer, recipe, output, ranks, time.monotonic() - began)


def num_steps(recipe: Recipe, num_views: int) -> int:
    """Optimizer steps of the run: the epochs' views, or max_steps where that is fewer."""
    per_step = recipe.train.batch_size * recipe.train.accumulation
    steps = max(1, math.ceil(recipe.train.epochs * num_views / per_step))
    return min(steps, recipe.train.max_steps or steps)


def _open_stream(
    recipe: Recipe, reader: CacheReader, basis: Basis | None, ranks: Ranks
) -> CacheStream:
    train = recipe.train
    has_tokens = isinstance(recipe.objective, TokenObjective)
    capacity = recipe.student.length if train.packing else None
    return CacheStream(
        reader,
        batch_size=train.batch_size,
        seed=train.seed,
        has_tokens=has_tokens,
        basis=basis,
        lanes=train.open_shards,
        rank=ranks.rank,
        world_size=ranks.size,
        workers=train.loader_workers,
        pins=not uses_cpu(recipe),
        has_buckets=train.length_buckets,
        collate=partial(collate, has_tokens=has_tokens, capacity=capacity),
    )


def _make_trainer(
    recipe: Recipe,
    reader: CacheReader,
    basis: Basis | None,
    tokenizer: ChatTokenizer,
    stream: CacheStream,
    ranks: Ranks,
    *,
    shows_progress: bool,
) -> tuple[StudentTrainer, str | None]:
    has_tokens = isinstance(recipe.objective, TokenObjective)
    expand = None
    if has_tokens:
        expand = expander(reader.identity.kept, basis, train_device(recipe))
    pipeline = recipe.pipeline
    distillation = build_distillation(
        recipe.objective,
        shared_vocab=pipeline.vocab if isinstance(pipeline, SharedTokenizer) else None,
        expand=expand,
    )
    to_tensors = partial(
        as_tensors,
        temperature=None if distillation is None else distillation.temperature,
        block_size=recipe.student.block_size,
    )
    set_seed(recipe.train.seed)
    return make_trainer(
        recipe,
        tokenizer,
        distillation,
        lambda skip, rows: stream.batches(skip=skip, then=partial(to_tensors, rows_per_block=rows)),
        ranks=ranks,
        max_steps=num_steps(recipe, stream.num_views),
        shows_progress=shows_progress,
        stamp=stamp_of(recipe, reader),
    )


def _train(
    recipe: Recipe,
    trainer: StudentTrainer,
    checkpoint: str | None,
    held_out: HeldOut | None,
    mask_id: int,
    output: TrainOutput,
    ranks: Ranks,
) -> None:
    """To the end, or to where the run is stopped; what is watched is kept."""
    trainer.remove_callback(PrinterCallback)  # the reporter tells it
    metrics = MetricsWriter(output)
    best = BestKeeper(trainer, output, lambda folder: save_student(trainer, recipe, folder, ranks))
    trainer.add_callback(metrics)
    trainer.add_callback(best)
    if held_out is not None:
        assert recipe.held_out is not None, "the recipe asks for it"
        trainer.add_callback(
            HeldOutWatch(
                trainer,
                held_out,
                recipe.held_out,
                mask_id=mask_id,
                block_size=recipe.student.block_size,
            )
        )
    if not trainer.train_from(checkpoint, is_over=lambda state: _is_over_early(state, recipe)):
        best.keep(trainer.state)
    metrics.keep(trainer.state)


def _is_over_early(state: TrainerState, recipe: Recipe) -> bool:
    patience = None if recipe.held_out is None else recipe.held_out.patience
    return Standing.of(state.log_history).is_over(patience)


def _finish(
    trainer: StudentTrainer, recipe: Recipe, output: TrainOutput, ranks: Ranks, seconds: float
) -> TrainSummary:
    """The summary; of a run that has come to its end, also the student and the summary's file."""
    state = trainer.state
    is_at_end = state.global_step >= state.max_steps
    stopped_early = not is_at_end and _is_over_early(state, recipe)
    best = Standing.of(state.log_history).best
    metrics = {
        name: float(value)
        for entry in state.log_history
        if "loss" in entry  # the Trainer's closing entry is of the time since a resume alone
        for name, value in entry.items()
        if name not in ("step", "epoch")
    }
    summary = TrainSummary(
        output=output.place_of(FINAL_FOLDER),
        steps=state.global_step,
        seconds=seconds,
        is_complete=is_at_end or stopped_early,
        metrics=metrics if best is None else metrics | {f"{HELD_OUT_NLL}_best": best.nll},
        stopped_early=stopped_early,
        best_step=None if best is None else best.step,
    )
    if summary.is_complete:
        save_student(trainer, recipe, output.folder / FINAL_FOLDER, ranks)
        if ranks.is_first:
            output.keep(FINAL_FOLDER)
            write_summary(output, summary)
    ranks.wait()  # nobody leaves before the run is whole
    return summary


def _with_output(recipe: Recipe, folder: Path) -> Recipe:
    train = recipe.train.model_copy(update={"output": str(folder)})
    return recipe.model_copy(update={"train": train})


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"train.output: cannot write to {output}: {error}") from error
