"""Random shard contents, and their comparison bit for bit."""

from dataclasses import fields, is_dataclass

import numpy as np

from pipeline.cache.decode import derive_corruption
from pipeline.cache.writer import Calibrated, Vocabularies
from pipeline.diffusion.corrupt import corrupt
from pipeline.targets.fit_coder import fit_coder
from storage_schemas.basis import Basis
from storage_schemas.examples import Pair
from storage_schemas.identity import (
    CacheIdentity,
    EvenTail,
    KeptIdentity,
    LengthsIdentity,
    NoiseIdentity,
    SketchTail,
    Tail,
    TeacherIdentity,
)
from storage_schemas.manifest import Calibration, Layout
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.skips import Skip
from storage_schemas.targets import KeptTargets, Targets

VOCAB_SIZE = 300
HIDDEN, RANK = 12, 10
EVEN = EvenTail()
SKETCH = SketchTail(asks="step", amount=0.1, temperature=2.0, rank=None, calibration_records=3)
LAYOUT = Layout(records_per_part=8)
VOCABULARIES = Vocabularies(
    student={index: bytes([index % 256]) for index in range(VOCAB_SIZE)},
    teacher={index: f"<{index}>".encode() for index in range(VOCAB_SIZE)} | {7: b"\xff"},
)


def identity_of(
    *,
    top_k: int = 4,
    logits_dtype: str = "float32",
    seed: int = 1,
    tail: Tail | None = EVEN,
    vocab_size: int = VOCAB_SIZE,
    **others: object,
) -> CacheIdentity:
    kept = KeptIdentity(
        top_k=top_k,
        logits_dtype=logits_dtype,
        temperatures=(1.0, 2.0),
        vocab_size=vocab_size,
        tail=tail if top_k or tail != EVEN else None,
    )
    fields_of = {
        "pipeline": "shared_tokenizer",
        "teacher": TeacherIdentity(
            revision=None,
            weights="w",
            family="llada",
            attention="full",
            block_size=None,
            dtype="float32",
        ),
        "student_tokenizer": "s",
        "teacher_tokenizer": "t",
        "lengths": LengthsIdentity(student_length=64, teacher_length=64, student_block_size=8),
        "records": "r",
        "noise": NoiseIdentity(seed=seed, eps=1e-3, demo_ratio=0.5),
        "kept": kept,
    }
    return CacheIdentity.model_validate(fields_of | others)


def content_of(
    rng: np.random.Generator,
    identity: CacheIdentity,
    *,
    part: int = 0,
    view_start: int = 0,
    view_stop: int = 2,
    num_examples: int = 3,
    num_skips: int = 2,
) -> ShardContent:
    examples = tuple(_pair(rng, f"p{part}/{index}é") for index in range(num_examples))
    views = tuple(
        _view(rng, row, pair, view, identity)
        for row, pair in enumerate(examples)
        for view in range(view_start, view_stop)
    )
    skips = tuple(
        Skip(where=f"f:{index}", record_id=f"r{index}", reason="too_long", message="so it is")
        for index in range(num_skips)
    )
    return ShardContent(
        part=part,
        view_start=view_start,
        view_stop=view_stop,
        examples=examples,
        views=views,
        skips=skips,
    )


def wild_floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Floats of any finite bit pattern, signed zeros and subnormals among them."""
    bits = rng.integers(0, 2**32, size=shape, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(-0.0))
    return np.where(rng.random(shape) < 0.1, np.float32(-0.0), values)


def same(left: object, right: object) -> bool:
    """Equal types, dtypes, shapes and bits, all the way down."""
    if isinstance(left, np.ndarray):
        assert isinstance(right, np.ndarray)
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, field.name), getattr(right, field.name)) for field in fields(left)
        )
    if isinstance(left, tuple):
        assert isinstance(right, tuple)
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def _pair(rng: np.random.Generator, record_id: str) -> Pair:
    num_student, num_teacher = int(rng.integers(1, 24)), int(rng.integers(1, 24))
    num_chunks = int(rng.integers(0, min(num_student, num_teacher) // 2 + 1))
    chunks_C4 = np.concatenate(
        [_spans(rng, num_teacher, num_chunks), _spans(rng, num_student, num_chunks)], axis=1
    )
    is_target_S = rng.random(num_student) < 0.5
    for _, _, start, stop in chunks_C4:
        is_target_S[start:stop] = True
    return Pair(
        record_id=record_id,
        student_ids_S=rng.integers(0, VOCAB_SIZE, num_student, dtype=np.int32),
        is_target_S=is_target_S,
        teacher_ids_T=rng.integers(0, VOCAB_SIZE, num_teacher, dtype=np.int32),
        chunks_C4=chunks_C4,
    )


def _spans(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    edges = np.sort(rng.choice(length + 1, size=2 * count, replace=False))
    return edges.reshape(count, 2).astype(np.int32)


def _view(
    rng: np.random.Generator, row: int, pair: Pair, view: int, identity: CacheIdentity
) -> StoredView:
    noise = corrupt(pair, seed=int(rng.integers(1000)), view=view, eps=1e-3)
    assert same(
        noise,
        derive_corruption(pair, view=view, time=noise.time, is_masked_S=noise.is_masked_S),
    )
    chunk_C = np.flatnonzero(noise.is_masked_C).astype(np.int32)
    num_rows = int(np.diff(pair.chunks_C4[chunk_C, :2]).sum())
    size_C = pair.chunks_C4[chunk_C, 1] - pair.chunks_C4[chunk_C, 0]
    tokens = _tokens(rng, num_rows, identity.kept)
    logp_C = wild_floats(rng, len(chunk_C))
    if tokens is not None:  # a chunk of one token has that token's logp
        logp_C = np.where(size_C == 1, tokens.gold_logp_M[size_C.cumsum() - 1], logp_C)
    targets = Targets(
        chunk_C=chunk_C,
        pass_C=rng.integers(0, 2, len(chunk_C), dtype=np.int8),
        logp_C=logp_C,
        tokens=tokens,
    )
    return StoredView(example=row, corruption=noise, targets=targets)


def _tokens(rng: np.random.Generator, num_rows: int, kept: KeptIdentity) -> KeptTargets | None:
    if not kept.has_tokens:
        return None
    ids_MK = np.stack(
        [rng.choice(kept.vocab_size, kept.top_k, replace=False) for _ in range(num_rows)]
        or [np.empty(kept.top_k)]
    )[:num_rows].astype(np.int32)
    logits_MK = wild_floats(rng, num_rows, kept.top_k)
    logsumexp_MJ = wild_floats(rng, num_rows, len(kept.temperatures))
    if kept.logits_dtype == "float16" and kept.top_k:  # as a teacher's: in order, no p above 1
        logits_MK = -np.sort(-rng.normal(size=logits_MK.shape).astype(np.float32) * 5, axis=1)
        logsumexp_MJ = logits_MK[:, :1] + rng.random(logsumexp_MJ.shape, dtype=np.float32) + 1
    rank = RANK if isinstance(kept.tail, SketchTail) else 0
    return KeptTargets(
        ids_MK=ids_MK,
        logits_MK=logits_MK,
        logsumexp_MJ=logsumexp_MJ,
        gold_logp_M=wild_floats(rng, num_rows),
        sketch_MR=sketch_of(rng, num_rows)[:, :rank],
        temperatures=kept.temperatures,
        vocab_size=kept.vocab_size,
    )


def sketch_of(rng: np.random.Generator, num_rows: int) -> np.ndarray:
    """Integers as of a sketch: large in the first columns, mostly zero in the last; some wild."""
    scales = np.geomspace(60, 0.1, RANK)
    rows = np.rint(rng.standard_t(3, size=(num_rows, RANK)) * scales)
    rows[rng.random(rows.shape) < 0.001] = rng.choice([-32767, 32767])
    return np.clip(rows, -32767, 32767).astype(np.int16)


def basis_of(vocab_size: int = VOCAB_SIZE) -> Basis:
    """A basis of random matrices, with a coder fitted to integers of `sketch_of`."""
    rng = np.random.default_rng(9)
    return Basis(
        mean_H=rng.normal(size=HIDDEN).astype(np.float32),
        encode_HR=rng.normal(size=(HIDDEN, RANK)).astype(np.float32),
        scale_R=np.geomspace(6, 0.01, RANK).astype(np.float32),
        decode_RV=rng.normal(size=(RANK, vocab_size)).astype(np.float16),
        base_V=rng.normal(size=vocab_size).astype(np.float32),
        bias_V=rng.random(vocab_size, dtype=np.float32),
        step=0.1,
        temperature=2.0,
        coder=fit_coder(sketch_of(rng, 500)),
    )


def calibrated() -> Calibrated:
    """What a calibration gives, from nothing."""
    report = Calibration(
        positions=500,
        search_positions=60,
        hidden_size=HIDDEN,
        rank=RANK,
        step=0.1,
        bytes_per_position=12.5,
        overfit_bytes=0.5,
        kl={"1.0": 0.01, "2.0": 0.02},
        grad_error=0.1,
    )
    return Calibrated(basis=basis_of(), report=report)
