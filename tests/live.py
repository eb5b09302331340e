"""Training with the teacher in the loop, on the noise of a cache: what a cache must come up to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import steps_of
from transformers import TrainerCallback

from pipeline.cache.reader import CacheReader
from pipeline.config.objective import TokenObjective
from pipeline.config.recipe import Recipe
from pipeline.stream.loader import CacheStream
from pipeline.student_train import make_trainer
from pipeline.teacher.answer import KeepDense, all_finite, answer_views
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.build import build_distillation
from pipeline.train.expand import expander, live_rows
from pipeline.train.ranks import Ranks
from pipeline.train.tensors import as_tensors
from pipeline.train.trainer import Reporter
from storage_schemas.manifest import LedgerEntry
from storage_schemas.shard import ShardContent, StoredView


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReader(CacheReader):
    """The noise of a cache, scored by a live teacher whenever a shard is read."""

    score: Callable[[ShardContent], ShardContent]

    def read_shard(self, entry: LedgerEntry, *args, **options) -> ShardContent:
        return self.score(CacheReader.read_shard(self, entry))


def live_reader(recipe: Recipe, *, batch_tokens: int) -> LiveReader:
    """Keeps nothing but the stored examples and masks; every target is the live teacher's."""
    config = recipe.teacher.model_copy(update={"batch_tokens": batch_tokens})
    backend = TransformersBackend.load(config, block_size=recipe.teacher_block_size)
    mask_id = ChatTokenizer.load(recipe.teacher.model).mask_id
    compdemo = recipe.noise.compdemo
    vocab = getattr(recipe.pipeline, "vocab", backend.vocab_size)

    def score(content: ShardContent) -> ShardContent:
        views = [(content.examples[stored.example], stored.corruption) for stored in content.views]
        answers = answer_views(
            backend,
            views,
            mask_id=mask_id,
            seed=recipe.noise.seed,
            demo_ratio=compdemo.ratio if compdemo else None,
            keep=KeepDense(vocab_size=vocab),
        )
        return ShardContent(
            part=content.part,
            view_start=content.view_start,
            view_stop=content.view_stop,
            examples=content.examples,
            views=tuple(
                StoredView(example=old.example, corruption=old.corruption, targets=new)
                for old, new in zip(content.views, all_finite(views, answers), strict=True)
            ),
            skips=content.skips,
        )

    stored = CacheReader.open(Path(recipe.cache.path))
    return LiveReader(
        store=stored.store, manifest=stored.manifest, entries=stored.entries, score=score
    )


class FirstGradient(TrainerCallback):
    """The gradient of the first step, as one vector."""

    def __init__(self) -> None:
        self.gradient: torch.Tensor | None = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradient is None:
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            self.gradient = torch.cat(grads).clone()


def train(
    recipe: Recipe, reader: CacheReader, *, steps: int
) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Every step's losses, and the first gradient; `student_train` with a reader of our own."""
    shared = getattr(recipe.pipeline, "vocab", None)
    basis = reader.read_basis()
    expand = (
        live_rows
        if isinstance(reader, LiveReader)
        else expander(reader.identity.kept, basis, torch.device("cpu"))
    )
    distillation = build_distillation(recipe.objective, shared_vocab=shared, expand=expand)
    stream = CacheStream(
        reader,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        has_tokens=isinstance(recipe.objective, TokenObjective),
        basis=basis,
    )
    trainer, _ = make_trainer(
        recipe,
        ChatTokenizer.load(recipe.student.model),
        distillation,
        lambda skip, rows: (
            as_tensors(
                batch,
                temperature=distillation.temperature,
                block_size=recipe.student.block_size,
                rows_per_block=rows,
            )
            for batch in stream.batches(skip=skip)
        ),
        ranks=Ranks(),
        max_steps=steps,
        shows_progress=False,
    )
    logs: list[dict[str, float]] = []
    first = FirstGradient()
    trainer.add_callback(Reporter(logs.append, lambda: False, Ranks()))
    trainer.add_callback(first)
    trainer.train()
    return steps_of(logs), first.gradient
