"""Stage 2: train a student from a cache alone; no teacher code is imported here."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from transformers import PrinterCallback, set_seed

from pipeline.cache.reader import CacheReader
from pipeline.config.objective import TokenObjective
from pipeline.config.recipe import Recipe, SharedTokenizer
from pipeline.stream.loader import CacheStream
from pipeline.train.build import Distillation, build_distillation
from pipeline.train.check import check_cache
from pipeline.train.expand import expander
from pipeline.train.finish import save_student
from pipeline.train.make import make_trainer, train_device, uses_cpu
from pipeline.train.output import CheckpointKeeper, TrainOutput, open_output
from pipeline.train.ranks import Ranks
from pipeline.train.run_file import (
    FINAL_FOLDER,
    RUN_FILE,
    SUMMARY_FILE,
    found_summary,
    run_of,
    write_run,
    write_summary,
)
from pipeline.train.sharding import kind_of_sharding, sharding
from pipeline.train.summary import TrainSummary
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
    student), summary.json (written last), runs/ (TensorBoard).
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
    ranks = Ranks.join(uses_cpu=uses_cpu(recipe))
    reader = CacheReader.open(recipe.cache.path)
    tokenizer = check_cache(reader, recipe)
    run = run_of(recipe, reader)
    output.fetch(RUN_FILE, SUMMARY_FILE)
    summary = found_summary(output, run)
    if summary is not None:
        return summary
    _make_folder(output.folder)
    output.fetch_checkpoint()
    began = time.monotonic()
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
    with sharding(kind_of_sharding(recipe)):
        trainer, checkpoint = make_trainer(
            _with_output(recipe, output.folder),
            tokenizer,
            distillation,
            lambda skip, rows: _tensors(cache, recipe, distillation, skip, rows, ranks),
            ranks=ranks,
            max_steps=num_steps(recipe, cache.num_views),
            shows_progress=shows_progress,
        )
        if ranks.is_first:
            write_run(output, run)  # nothing that was refused leaves a claim behind
        trainer.add_callback(Reporter(on_log, should_stop, ranks))
        trainer.add_callback(CheckpointKeeper(output, ranks))
        trainer.remove_callback(PrinterCallback)  # `on_log` tells it
        trainer.train_from(checkpoint)
        return _finish(trainer, recipe, output, ranks, time.monotonic() - began)


def num_steps(recipe: Recipe, num_views: int) -> int:
    """Optimizer steps of the run: the epochs' views, or max_steps where that is fewer."""
    per_step = recipe.train.batch_size * recipe.train.accumulation
    steps = max(1, math.ceil(recipe.train.epochs * num_views / per_step))
    return min(steps, recipe.train.max_steps or steps)


def _finish(
    trainer: StudentTrainer, recipe: Recipe, output: TrainOutput, ranks: Ranks, seconds: float
) -> TrainSummary:
    """The summary; of a run that has come to its end, also the student and the summary's file."""
    is_complete = trainer.state.global_step >= trainer.state.max_steps
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
        is_complete=is_complete,
        metrics=metrics,
    )
    if is_complete:
        save_student(trainer, recipe, output.folder / FINAL_FOLDER, ranks)
        if ranks.is_first:
            output.keep(FINAL_FOLDER)
            write_summary(output, summary)
    ranks.wait()  # nobody leaves before the run is whole
    return summary


def _tensors(
    cache: CacheStream,
    recipe: Recipe,
    distillation: Distillation | None,
    skip: int,
    rows: int,
    ranks: Ranks,
) -> Iterator[TensorBatch]:
    for batch in islice(cache.batches(skip=skip), ranks.rank, None, ranks.size):
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
