"""Shards for the cache's benchmark: of real rows, and of random ones in any number.

Axes: Q sequence, P position, M masked position, K kept logit.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from real_logits import FIRST, LENGTH, NUM_VIEWS, Scored

from pipeline.cache.writer import CacheWriter, Calibrated, Vocabularies
from pipeline.diffusion.corrupt import corrupt
from storage_schemas.examples import Pair
from storage_schemas.identity import (
    CacheIdentity,
    KeptIdentity,
    LengthsIdentity,
    NoiseIdentity,
    Tail,
    TeacherIdentity,
)
from storage_schemas.manifest import Layout
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.targets import KeptTargets, Targets

TEMPERATURES = (1.0, 2.0)
SEED, EPS = 0, 1e-3
Answer = Callable[[int, int, np.ndarray], KeptTargets]
"""(sequence, view, predicted positions) in, what is kept of those rows out."""


def identity_of(kept: KeptIdentity) -> CacheIdentity:
    """An identity whose inputs are this benchmark's."""
    return CacheIdentity(
        pipeline="shared_tokenizer",
        teacher=TeacherIdentity(
            revision=None,
            weights="benchmark",
            family="native",
            attention="full",
            block_size=None,
            dtype="float32",
        ),
        student_tokenizer="benchmark",
        teacher_tokenizer="benchmark",
        lengths=LengthsIdentity(
            student_length=LENGTH, teacher_length=LENGTH, student_block_size=32
        ),
        records="benchmark",
        noise=NoiseIdentity(seed=SEED, eps=EPS, demo_ratio=None),
        kept=kept,
    )


def kept_of(vocab_size: int, *, top_k: int, tail: Tail | None) -> KeptIdentity:
    """What is kept, at T = 1 and 2, with float16 logits."""
    return KeptIdentity(
        top_k=top_k,
        logits_dtype="float16",
        temperatures=TEMPERATURES,
        vocab_size=vocab_size,
        tail=tail,
    )


def open_writer(
    path: Path, kept: KeptIdentity, calibrate: Callable[[], Calibrated] | None = None
) -> CacheWriter:
    """A cache for benchmark shards."""
    token = {0: b"a"}
    return CacheWriter.open(
        path,
        identity_of(kept),
        Layout(records_per_part=1024),
        Vocabularies(student=token, teacher=token),
        calibrate,
    )


def shard_of(part: int, ids_QS: np.ndarray, answer: Answer) -> ShardContent:
    """All views of some sequences: every token from FIRST on is a chunk that noise may mask."""
    examples: list[Pair] = []
    views: list[StoredView] = []
    token = np.arange(FIRST, ids_QS.shape[1], dtype=np.int32)
    for q, ids_S in enumerate(ids_QS):
        pair = Pair(
            record_id=f"{part}/{q}",
            student_ids_S=ids_S,
            is_target_S=np.arange(len(ids_S)) >= FIRST,
            teacher_ids_T=ids_S,
            chunks_C4=np.stack([token, token + 1, token, token + 1], axis=1),
        )
        examples.append(pair)
        for view in range(NUM_VIEWS):
            noise = corrupt(pair, seed=SEED, view=view, eps=EPS)
            chunk_C = np.flatnonzero(noise.is_masked_C).astype(np.int32)
            tokens = answer(q, view, chunk_C)
            targets = Targets(
                chunk_C=chunk_C,
                pass_C=np.zeros(len(chunk_C), np.int8),
                logp_C=tokens.gold_logp_M,
                tokens=tokens,
            )
            views.append(StoredView(example=q, corruption=noise, targets=targets))
    return ShardContent(
        part=part,
        view_start=0,
        view_stop=NUM_VIEWS,
        examples=tuple(examples),
        views=tuple(views),
        skips=(),
    )


def random_shards(num_positions: int, vocab_size: int, top_k: int) -> Iterator[ShardContent]:
    """Shards of about 64k random rows each, with as many positions in all, or a few more."""
    rng = np.random.default_rng(0)
    per_sequence = NUM_VIEWS * (LENGTH - FIRST) // 2

    def answer(q: int, view: int, chunk_C: np.ndarray) -> KeptTargets:
        del q, view
        num_rows = len(chunk_C)
        logits_MK = -np.sort(-3 * rng.standard_normal((num_rows, top_k), dtype=np.float32), axis=1)
        return KeptTargets(
            ids_MK=rng.integers(0, vocab_size, (num_rows, top_k), dtype=np.int32),
            logits_MK=logits_MK,
            logsumexp_MJ=logits_MK[:, :1] + rng.random((num_rows, 2), dtype=np.float32),
            gold_logp_M=-rng.random(num_rows, dtype=np.float32),
            sketch_MR=np.zeros((num_rows, 0), np.int16),
            temperatures=TEMPERATURES,
            vocab_size=vocab_size,
        )

    part = 0
    while num_positions > 0:
        count = min(144, -(-num_positions // per_sequence))
        ids_QS = rng.integers(0, vocab_size, (count, LENGTH), dtype=np.int32)
        content = shard_of(part, ids_QS, answer)
        num_positions -= sum(len(stored.targets.chunk_C) for stored in content.views)
        part += 1
        yield content


def rows_at(scored: Scored, q: int, view: int, chunk_C: np.ndarray) -> np.ndarray:
    """The hidden states of a view's masked positions."""
    return scored.hidden_VQPH[view, q, chunk_C]
