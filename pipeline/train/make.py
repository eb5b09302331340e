"""From a recipe to a trainer: student, transformers' arguments, checkpoint to go on from."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, TrainingArguments

from pipeline.config.recipe import Recipe
from pipeline.storage.model_files import refuse_pickles
from pipeline.student.forward import head
from pipeline.student.kernels import choose_kernel
from pipeline.student.lora import add_adapters
from pipeline.student.model import check_block_attention, forget_activations, load_student
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.build import Distillation
from pipeline.train.head_loss import rows_per_block
from pipeline.train.loss import StudentLoss
from pipeline.train.ranks import Ranks, local_rank
from pipeline.train.sharding import check_sharding, kind_of_sharding
from pipeline.train.tensors import TensorBatch
from pipeline.train.trackers import check_trackers
from pipeline.train.trainer import StudentTrainer
from storage_schemas.errors import RecipeError

_LOG = logging.getLogger(__name__)

# transformers' plain "constant" would ignore the warm-up
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def train_device(recipe: Recipe) -> torch.device:
    """Where the student is trained."""
    return torch.device("cpu" if uses_cpu(recipe) else f"cuda:{local_rank()}")


def uses_cpu(recipe: Recipe) -> bool:
    """Whether it is trained on the CPU: asked for, or for want of a GPU."""
    device = recipe.train.device
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def make_trainer(
    recipe: Recipe,
    tokenizer: ChatTokenizer,
    distillation: Distillation | None,
    stream: Callable[[int, int], Iterator[TensorBatch]],
    *,
    ranks: Ranks,
    max_steps: int,
    shows_progress: bool,
    stamp: Callable[[Path, int], None] = lambda folder, step: None,
) -> tuple[StudentTrainer, str | None]:
    """The trainer, and the checkpoint to go on from.

    `stream(skip, rows)` gives the micro-batches from number `skip` on, their masked positions in
    blocks of `rows`. `stamp(folder, step)` marks every folder that a student is saved to.
    """
    train = recipe.train
    check_trackers(train.trackers)
    model = _load(recipe, tokenizer)
    rows = rows_per_block(cast("Any", head(model)).weight.shape[0], train_device(recipe))
    checkpoint, done = _last_checkpoint(Path(train.output))
    batches = stream(done * train.accumulation, rows)  # it reads while the rest is made ready
    if checkpoint is not None:
        refuse_pickles(Path(checkpoint))
        check_sharding(Path(checkpoint), kind_of_sharding(recipe))
    arguments = _arguments(
        recipe, ranks.share_of(train.accumulation), max_steps, shows_progress=shows_progress
    )
    # where it will be trained: kernels differ by device
    check_block_attention(
        cast("Any", model).to(arguments.device),
        mask_id=tokenizer.mask_id,
        block_size=recipe.student.block_size,
    )
    trained = model if train.lora is None else add_adapters(model, train.lora)
    if train.gradient_checkpointing:
        forget_activations(model)
    trainer = StudentTrainer(
        trained,
        arguments,
        lambda: batches,
        loss=StudentLoss(
            distillation=distillation,
            mask_id=tokenizer.mask_id,
            block_size=recipe.student.block_size,
        ),
        stamp=stamp,
        ranks=ranks,
        processing_class=tokenizer.hf,
    )
    return trainer, checkpoint


def _load(recipe: Recipe, tokenizer: ChatTokenizer) -> PreTrainedModel:
    """The student, with the attention that its device wants and an embedding for every token."""
    kernel, why = choose_kernel(recipe.train.kernel, train_device(recipe))
    _LOG.info("attention kernel %s: %s", kernel, why)
    model = load_student(recipe.student, kernel=kernel)
    vocab_size = cast("Any", model.get_input_embeddings()).weight.shape[0]
    if vocab_size < tokenizer.vocab_size:
        raise RecipeError(
            f"expected a student with at least {tokenizer.vocab_size} embeddings, as its tokenizer "
            f"has tokens, got {vocab_size}; resize the student's embeddings first"
        )
    return model


def _arguments(
    recipe: Recipe, accumulation: int, max_steps: int, *, shows_progress: bool
) -> TrainingArguments:
    """The recipe in transformers' words; `accumulation` is this process's share of it."""
    train = recipe.train
    arguments = TrainingArguments(
        output_dir=train.output,
        max_steps=max_steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=round(train.warmup_share * max_steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        use_cpu=uses_cpu(recipe),
        seed=train.seed,
        logging_steps=train.log_steps,
        save_steps=train.save_steps,
        save_total_limit=train.keep_checkpoints,
        report_to=list(train.trackers),
        trackio_space_id=None,  # on this machine: some versions would open a public Space
        disable_tqdm=not shows_progress,
        remove_unused_columns=False,
        ignore_data_skip=True,  # the stream itself begins where the checkpoint ended
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,  # a loss reads all of the student, or is zero on all
    )
    # one process trains on one GPU: no silent nn.DataParallel over all that are visible
    arguments._n_gpu = min(1, arguments.n_gpu)  # pyright: ignore[reportPrivateUsage]
    return arguments


def _last_checkpoint(output: Path) -> tuple[str | None, int]:
    """The last whole checkpoint and its step; the Trainer writes trainer_state.json last."""
    steps = [
        int(path.parent.name.removeprefix("checkpoint-"))
        for path in output.glob("checkpoint-*/trainer_state.json")
    ]
    return (str(output / f"checkpoint-{max(steps)}"), max(steps)) if steps else (None, 0)
