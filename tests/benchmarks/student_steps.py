"""Training steps of one student, each in its turn: ours, the plain way, and with a live teacher.

A step is all that an optimizer step does: loss, backward, clipping, AdamW. Ours take cached batches
as the loader hands them over; a live step asks the teacher about the same views first.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from student_cache import BLOCK, VOCAB, StudentBench, student_config
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
)

from pipeline.cache.reader import CacheReader
from pipeline.config.objective import MaskedNll, ReverseCalm, TidalKl
from pipeline.stream.collate import View, collate
from pipeline.student.attention import attention_arguments
from pipeline.student.forward import attention_implementation
from pipeline.student.kernels import choose_kernel, implementation_of
from pipeline.targets.sketch import SketchDecoder
from pipeline.teacher.answer import KeepDense, all_finite, answer_views
from pipeline.teacher.keep import KeepChunks
from pipeline.teacher.kernels import implementation_of as teacher_implementation_of
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.train.build import build_distillation
from pipeline.train.expand import Expand, expander, live_rows, sketch_expander
from pipeline.train.head_loss import rows_per_block
from pipeline.train.loss import Counts, StudentLoss
from pipeline.train.tensors import TensorBatch, as_tensors
from storage_schemas.targets import KeptTargets

MASK_ID, BATCH, PROGRESS = 4095, 2, 0.5
OBJECTIVES = {"ce": MaskedNll(), "reverse_calm": ReverseCalm(type="reverse_calm")}
TIDAL = TidalKl(type="tidal_kl")


def alternate(
    arms: dict[str, Callable[[int], None]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """The median seconds of each arm, over rounds in which each has its turn on one batch."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds + 1):
        for name, arm in arms.items():
            began = clock()
            arm(i)
            if i:  # the first round warms up
                seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


@dataclass(frozen=True, slots=True)
class Views:
    """Batches of stored views, with the token targets."""

    batches: Sequence[Sequence[View]]

    @classmethod
    def read(cls, bench: StudentBench, count: int) -> "Views":
        """From the cache's first shard, decoded."""
        reader = CacheReader.open(bench.folder / "cache")
        basis = reader.read_basis()
        assert basis is not None, "the bench's cache has a sketch"
        shard = reader.read_shard(reader.entries[0], basis.coder)
        views = [
            View(
                pair=shard.examples[stored.example],
                corruption=stored.corruption,
                targets=stored.targets,
            )
            for stored in shard.views
        ]
        assert len(views) >= count * BATCH, "a shard has enough views"
        return cls([views[i * BATCH : (i + 1) * BATCH] for i in range(count)])

    def tensors(self, i: int, *, has_tokens: bool, rows: int) -> TensorBatch:
        """Batch `i` as the loader makes it, in blocks of `rows`."""
        return _tensors(self.batches[i], has_tokens=has_tokens, rows=rows)

    @property
    def rank(self) -> int:
        """Sketch coefficients a row."""
        tokens = self.batches[0][0].targets.tokens
        assert isinstance(tokens, KeptTargets), "views with sketches"
        return tokens.sketch_MR.shape[1]

    @property
    def tokens_a_batch(self) -> float:
        """Input tokens of the student, noised and clean half, on average."""
        counts = [2 * sum(len(v.pair.student_ids_S) for v in batch) for batch in self.batches]
        return statistics.mean(counts)

    @property
    def masked_a_batch(self) -> float:
        """Masked positions, on average."""
        counts = [sum(int(v.corruption.is_masked_S.sum()) for v in batch) for batch in self.batches]
        return statistics.mean(counts)


class Steps:
    """One student and its optimizer."""

    def __init__(
        self, config: Qwen3Config | None = None, *, device: str = "cpu", is_bf16: bool = False
    ) -> None:
        torch.manual_seed(0)
        config = student_config() if config is None else config
        self.vocab_size = int(config.vocab_size)
        self.device = torch.device(device)
        self.rows = rows_per_block(self.vocab_size, self.device)
        self._is_bf16 = is_bf16
        kernel, _ = choose_kernel("auto", self.device)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=implementation_of(kernel), dtype=torch.float32
        )
        self.model = model.to(self.device).train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)

    def ours(self, loss: StudentLoss, batch: TensorBatch) -> None:
        """A step of stage 2."""
        numbers = (batch.num_maskable, batch.num_chunks, batch.num_tokens)
        maskable, chunks, tokens = torch.tensor(numbers).to(self.device)
        counts = Counts(maskable=maskable, chunks=chunks, tokens=tokens)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            value, _ = loss(self.model, batch.to(self.device), counts, PROGRESS)
        self._update(value)

    def naive(self, batch: TensorBatch) -> None:
        """Cross-entropy as one would write it first: transformers' forward, all logits."""
        batch = batch.to(self.device)
        shape = batch.student_ids_BS.shape
        ids_BS, is_masked_BS = batch.student_ids_BS, batch.is_masked_BS
        noised_BS = ids_BS.masked_fill(is_masked_BS, MASK_ID)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            logits_BPV = self.model(
                input_ids=torch.cat([noised_BS, ids_BS], 1),
                use_cache=False,
                **attention_arguments(
                    (shape[0], shape[1]),
                    None,
                    BLOCK,
                    implementation=attention_implementation(self.model),
                    device=self.device,
                    dtype=self.model.dtype,
                ),
            ).logits
        nll_BS = functional.cross_entropy(
            logits_BPV[:, : shape[1]].transpose(1, 2).float(), ids_BS, reduction="none"
        )
        weight_BS = is_masked_BS / batch.time_E[:, None]
        self._update((nll_BS * weight_BS).sum() / batch.num_maskable)

    def _update(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def student_loss(config: Any, expand: Expand | None = None, vocab_size: int = VOCAB) -> StudentLoss:
    """Stage 2's loss of an objective."""
    return StudentLoss(
        distillation=build_distillation(config, shared_vocab=vocab_size, expand=expand),
        mask_id=MASK_ID,
        block_size=BLOCK,
    )


def cached_arms(steps: Steps, views: Views, expand: Expand) -> dict[str, Callable[[int], None]]:
    """CE, Reverse CALM and TIDAL from the cache, and the naive CE."""
    chunks = {name: student_loss(config) for name, config in OBJECTIVES.items()}
    tidal = student_loss(TIDAL, expand, steps.vocab_size)

    def arm(loss: StudentLoss, *, has_tokens: bool) -> Callable[[int], None]:
        return lambda i: steps.ours(loss, views.tensors(i, has_tokens=has_tokens, rows=steps.rows))

    return {
        **{name: arm(loss, has_tokens=False) for name, loss in chunks.items()},
        "tidal": arm(tidal, has_tokens=True),
        "naive": lambda i: steps.naive(views.tensors(i, has_tokens=False, rows=steps.rows)),
    }


def cache_expand(bench: StudentBench) -> Expand:
    """How the cache's own rows expand."""
    reader = CacheReader.open(bench.folder / "cache")
    return expander(reader.identity.kept, reader.read_basis(), torch.device("cpu"))


def live_arms(views: Views, steps: Steps) -> dict[str, Callable[[int], None]]:
    """Reverse CALM under a mixture of experts of 2.4 times the student's active parameters, and
    TIDAL with CompDemo's two passes under a dense teacher of 13 times."""
    moe = TransformersBackend(
        mixture_teacher(), block_size=None, batch_tokens=2048, kernel="packed"
    )
    dense = TransformersBackend(dense_teacher(), block_size=BLOCK, batch_tokens=2048)
    calm = student_loss(OBJECTIVES["reverse_calm"])
    tidal = student_loss(TIDAL, live_rows)

    def reverse_calm(i: int) -> None:
        answered = _answered(moe, views.batches[i], demo_ratio=None, keep=KeepChunks())
        steps.ours(calm, _tensors(answered, has_tokens=False, rows=steps.rows))

    def tidal_kl(i: int) -> None:
        answered = _answered(
            dense, views.batches[i], demo_ratio=0.5, keep=KeepDense(vocab_size=VOCAB)
        )
        steps.ours(tidal, _tensors(answered, has_tokens=True, rows=steps.rows))

    return {"reverse_calm_live": reverse_calm, "tidal_live": tidal_kl}


def dense_teacher() -> PreTrainedModel:
    """13 times the student's 20.1M parameters beside embedding and head."""
    torch.manual_seed(1)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=1536,
            num_hidden_layers=10,
            num_attention_heads=12,
            num_key_value_heads=4,
            head_dim=128,
            intermediate_size=4304,
        )
    ).eval()


def mixture_teacher() -> PreTrainedModel:
    """2.4 times the student's parameters active at each token, of 32 experts four."""
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(
        Qwen3MoeConfig(
            vocab_size=VOCAB,
            hidden_size=768,
            num_hidden_layers=8,
            num_attention_heads=12,
            num_key_value_heads=4,
            head_dim=64,
            num_experts=32,
            num_experts_per_tok=4,
            moe_intermediate_size=480,
            tie_word_embeddings=False,
        ),
        attn_implementation=teacher_implementation_of("packed"),
    ).eval()


def operations(config: Qwen3Config, views: Views, *, is_tidal: bool) -> float:
    """Multiply-adds of a step's matrix products: body, head and, for TIDAL, the sketch's decoding.

    Three products a weight (forward and two of backward), one for the decoder; attention left out.
    """
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)
    layer = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    body = 3 * config.num_hidden_layers * layer * views.tokens_a_batch
    head = 3 * config.hidden_size * config.vocab_size * views.masked_a_batch
    return body + head + is_tidal * views.rank * config.vocab_size * views.masked_a_batch


def _answered(
    backend: TransformersBackend, views: Sequence[View], *, demo_ratio: float | None, keep: Any
) -> list[View]:
    asked = [(view.pair, view.corruption) for view in views]
    answers = answer_views(
        backend, asked, mask_id=MASK_ID, seed=0, demo_ratio=demo_ratio, keep=keep
    )
    return [
        View(pair=view.pair, corruption=view.corruption, targets=targets)
        for view, targets in zip(views, all_finite(asked, answers), strict=True)
    ]


def _tensors(views: Sequence[View], *, has_tokens: bool, rows: int) -> TensorBatch:
    return as_tensors(
        collate(views, has_tokens=has_tokens),
        temperature=TIDAL.temperature if has_tokens else None,
        block_size=BLOCK,
        rows_per_block=rows,
    )


def random_expand(rank: int, vocab_size: int, device: str = "cpu") -> Expand:
    """Sketches read with a random decoder: of any vocabulary."""
    return sketch_expander(
        SketchDecoder(
            decode_RV=torch.randn(rank, vocab_size, device=device),
            base_V=torch.randn(vocab_size, device=device),
            step=0.1,
        )
    )
