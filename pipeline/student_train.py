"""Stage 2: train a student from a cache alone; no teacher code is imported here."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PrinterCallback, TrainingArguments, set_seed

from pipeline.cache.reader import CacheReader
from pipeline.config.objective import TokenObjective
from pipeline.config.recipe import Recipe, SharedTokenizer
from pipeline.stream.loader import CacheStream
from pipeline.student.model import check_block_attention, load_student
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.build import Distillation, build_distillation
from pipeline.train.expand import expander
from pipeline.train.output import CheckpointKeeper, TrainOutput, open_output
from pipeline.train.tensors import TensorBatch, as_tensors
from pipeline.train.trainer import Reporter, StudentTrainer
from storage_schemas.errors import CacheIdentityError, RecipeError

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
FINAL_FOLDER = "final"
# transformers' plain "constant" would ignore the warm-up
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """A finished or stopped run. `output` holds the student, for `from_pretrained`.

    It is a URL where train.output is one.
    metrics: the last logged value of the loss, of each term, and of what else a step logs.
    """

    output: Path | str
    steps: int
    seconds: float
    is_complete: bool
    metrics: dict[str, float]


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
    reader = CacheReader.open(recipe.cache.path)
    tokenizer = _check_cache(reader, recipe)
    run = _run_of(recipe, reader)
    output.fetch(RUN_FILE, SUMMARY_FILE)
    summary = _found(output, run)
    if summary is not None:
        return summary
    _make_folder(output.folder)
    output.fetch_checkpoint()
    began = time.monotonic()
    shared = recipe.pipeline.vocab if isinstance(recipe.pipeline, SharedTokenizer) else None
    basis = reader.read_basis()  # also where no objective needs it: a damaged cache is refused
    has_tokens = isinstance(recipe.objective, TokenObjective)
    device = torch.device("cpu" if _uses_cpu(recipe.train.device) else "cuda")
    distillation = build_distillation(
        recipe.objective,
        shared_vocab=shared,
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
        lambda skip: _tensors(cache, distillation, skip),
        max_steps=num_steps(recipe, cache.num_views),
        shows_progress=shows_progress,
    )
    _write_json(output.folder / RUN_FILE, run)  # nothing that was refused leaves a claim behind
    output.keep(RUN_FILE)
    trainer.add_callback(Reporter(on_log, should_stop))
    trainer.add_callback(CheckpointKeeper(output))
    trainer.remove_callback(PrinterCallback)  # `on_log` tells it
    trainer.train_from(checkpoint)
    is_complete = trainer.state.global_step >= trainer.state.max_steps
    metrics = {
        name: float(value)
        for entry in trainer.state.log_history
        if "loss" in entry  # the Trainer's closing entry is of the time since a resume alone
        for name, value in entry.items()
        if name not in ("step", "epoch")
    }
    if is_complete:
        trainer.save_model(str(output.folder / FINAL_FOLDER))
    summary = TrainSummary(
        output=output.place_of(FINAL_FOLDER),
        steps=trainer.state.global_step,
        seconds=time.monotonic() - began,
        is_complete=is_complete,
        metrics=metrics,
    )
    if is_complete:
        fields = asdict(summary) | {"output": FINAL_FOLDER}
        _write_json(output.folder / SUMMARY_FILE, fields)
        output.keep(FINAL_FOLDER)
        output.keep(SUMMARY_FILE)
    return summary


def num_steps(recipe: Recipe, num_views: int) -> int:
    """Optimizer steps of the run: the epochs' views, or max_steps where that is fewer."""
    per_step = recipe.train.batch_size * recipe.train.accumulation
    steps = max(1, math.ceil(recipe.train.epochs * num_views / per_step))
    return min(steps, recipe.train.max_steps or steps)


def make_trainer(
    recipe: Recipe,
    tokenizer: ChatTokenizer,
    distillation: Distillation | None,
    stream: Callable[[int], Iterator[TensorBatch]],
    *,
    max_steps: int,
    shows_progress: bool,
) -> tuple[StudentTrainer, str | None]:
    """The trainer, and the checkpoint to go on from; `stream(skip)` gives the batches."""
    train = recipe.train
    output = Path(train.output)
    model = load_student(recipe.student)
    vocab_size = cast("Any", model.get_input_embeddings()).weight.shape[0]
    if vocab_size < tokenizer.vocab_size:
        raise RecipeError(
            f"expected a student with at least {tokenizer.vocab_size} embeddings, as its tokenizer "
            f"has tokens, got {vocab_size}; resize the student's embeddings first"
        )
    check_block_attention(model, mask_id=tokenizer.mask_id, block_size=recipe.student.block_size)
    checkpoint, done = _last_checkpoint(output)
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=max_steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=round(train.warmup_share * max_steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        use_cpu=_uses_cpu(train.device),
        seed=train.seed,
        logging_steps=train.log_steps,
        save_steps=train.save_steps,
        save_total_limit=train.keep_checkpoints,
        report_to=list(train.trackers),
        disable_tqdm=not shows_progress,
        remove_unused_columns=False,
        ignore_data_skip=True,  # the stream itself begins where the checkpoint ended
        dataloader_pin_memory=False,
    )
    if arguments.world_size > 1:
        raise RecipeError(
            f"expected one training process, got {arguments.world_size}; start student-train "
            "without a launcher"
        )
    # one process trains on one GPU: no silent nn.DataParallel over all that are visible
    arguments._n_gpu = min(1, arguments.n_gpu)  # pyright: ignore[reportPrivateUsage]
    trainer = StudentTrainer(
        model,
        arguments,
        lambda: stream(done * train.accumulation),
        distillation=distillation,
        mask_id=tokenizer.mask_id,
        block_size=recipe.student.block_size,
        processing_class=tokenizer.hf,
    )
    return trainer, checkpoint


def _tensors(
    cache: CacheStream, distillation: Distillation | None, skip: int
) -> Iterator[TensorBatch]:
    temperature = distillation.temperature if distillation is not None else None
    for batch in cache.batches(skip=skip):
        yield as_tensors(batch, temperature=temperature)


def _check_cache(reader: CacheReader, recipe: Recipe) -> ChatTokenizer:
    """The student's tokenizer, once it is known to be the one that the cache was made with."""
    student = recipe.student
    tokenizer = ChatTokenizer.load(
        student.model,
        revision=student.revision,
        trust_remote_code=student.trust_remote_code,
        mask_token=student.mask_token,
        mask_id=student.mask_id,
    )
    identity = reader.identity
    wanted: list[tuple[str, object, object]] = [
        ("pipeline.type", identity.pipeline, recipe.pipeline.type),
        ("the student's tokenizer", identity.student_tokenizer, tokenizer.fingerprint),
        ("student.length", identity.lengths.student_length, student.length),
        ("student.block_size", identity.lengths.student_block_size, student.block_size),
    ]
    if isinstance(recipe.pipeline, SharedTokenizer):
        wanted.append(("pipeline.vocab", identity.kept.vocab_size, recipe.pipeline.vocab))
    lines = [
        f"{name}: the cache has {got}, the recipe asks for {want}"
        for name, got, want in wanted
        if got != want
    ]
    if isinstance(recipe.objective, TokenObjective):
        if not identity.kept.has_distributions:
            lines.append(
                f"objective {recipe.objective.type!r} needs token distributions, the cache keeps "
                "chunk likelihoods, and at most a top k to look at"
            )
        elif recipe.objective.temperature not in identity.kept.temperatures:
            lines.append(
                f"objective.temperature: the cache has logsumexps at "
                f"{list(identity.kept.temperatures)}, the recipe asks for "
                f"{recipe.objective.temperature}"
            )
    if lines:
        raise CacheIdentityError(
            "\n  ".join(
                [f"{reader.address}: this student cannot be trained from this cache:", *lines]
            )
        )
    return tokenizer


def _run_of(recipe: Recipe, reader: CacheReader) -> dict[str, Any]:
    """What a run is: everything that decides its student."""
    return {
        "cache": {"digest": reader.identity.digest, "shards": [e.shard for e in reader.entries]},
        "recipe": {
            name: fields
            for name, fields in recipe.model_dump(mode="json").items()
            if name in ("pipeline", "student", "objective", "train")
        },
    }


def _found(output: TrainOutput, run: dict[str, Any]) -> TrainSummary | None:
    """The summary of this very run, if it is finished; refuses a folder that holds another run."""
    if not (output.folder / RUN_FILE).exists():
        return None
    found = _read_json(output.folder / RUN_FILE)
    if found != run:
        names = sorted({name for name, _ in _flat(found).items() ^ _flat(run).items()})
        raise RecipeError(
            f"{output.address} holds another run: it differs in {', '.join(names)}; name another "
            f"train.output, or remove this folder"
        )
    if not (output.folder / SUMMARY_FILE).exists():
        return None
    fields = _read_json(output.folder / SUMMARY_FILE)
    fields["output"] = output.place_of(fields["output"])
    return TrainSummary(**fields)


def _with_output(recipe: Recipe, folder: Path) -> Recipe:
    train = recipe.train.model_copy(update={"output": str(folder)})
    return recipe.model_copy(update={"train": train})


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"train.output: cannot write to {output}: {error}") from error


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value)
    return flat


def _last_checkpoint(output: Path) -> tuple[str | None, int]:
    """The last whole checkpoint and its step; the Trainer writes trainer_state.json last."""
    steps = [
        int(path.parent.name.removeprefix("checkpoint-"))
        for path in output.glob("checkpoint-*/trainer_state.json")
    ]
    return (str(output / f"checkpoint-{max(steps)}"), max(steps)) if steps else (None, 0)


def _uses_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _read_json(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    """Whole or not at all: written beside, then renamed."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    beside.rename(path)
