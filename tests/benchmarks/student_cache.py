"""A student of 20M parameters and a cache for it: random numbers in the shapes of the paper's runs.

Speed does not depend on what the numbers are, only on how many there are. The cache goes through
the real writer, with a sketch of r = 4 H coefficients that costs about a hundred bytes a position.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.cache.writer import CacheWriter, Calibrated, Vocabularies
from pipeline.config.recipe import Recipe, parse_recipe
from pipeline.demo.corpus import ASSETS
from pipeline.diffusion.corrupt import corrupt
from pipeline.targets.fit_coder import fit_coder
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.basis import Basis
from storage_schemas.examples import Pair
from storage_schemas.identity import (
    CacheIdentity,
    KeptIdentity,
    LengthsIdentity,
    NoiseIdentity,
    SketchTail,
    TeacherIdentity,
)
from storage_schemas.manifest import Calibration, Layout
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.targets import KeptTargets, Targets
from storage_schemas.views import Corruption

HIDDEN, VOCAB, RANK = 512, 8_192, 2_048
LENGTH, RESPONSE, BLOCK = 256, 128, 32  # 2 * 256 input tokens for 64 masked ones: 8 to 1
NUM_SHARDS, RECORDS_A_SHARD, VIEWS = 6, 64, 4
EPS, TEMPERATURES = 1e-3, (1.0, 2.0)


def student_config(vocab_size: int = VOCAB) -> Qwen3Config:
    """20.1M parameters beside embedding and head."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1664,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )


@dataclass(frozen=True, slots=True)
class StudentBench:
    """The folder with the student and its cache."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "StudentBench":
        """Draws both; always the same."""
        torch.manual_seed(0)
        Qwen3ForCausalLM(student_config()).save_pretrained(folder / "student")
        tokenizer = ChatTokenizer.load(str(ASSETS / "tokenizer-student"))
        tokenizer.hf.save_pretrained(folder / "student")
        identity = _identity(tokenizer.fingerprint)
        rng = np.random.default_rng(0)
        basis = _basis(rng)
        token = {0: b"a"}
        with CacheWriter.open(
            folder / "cache",
            identity,
            Layout(records_per_part=RECORDS_A_SHARD),
            Vocabularies(student=token, teacher=token),
            lambda: Calibrated(basis=basis, report=_report()),
        ) as writer:
            for content in _shards(rng):
                writer.commit(content)
        return cls(folder)

    def recipe(self, objective: str, output: str, **train: Any) -> Recipe:
        """Stage 2 over the cache."""
        return parse_recipe(
            {
                "pipeline": {"type": "shared_tokenizer", "vocab": VOCAB},
                "records": {"type": "files", "paths": ["unused.jsonl"]},
                "student": {
                    "model": str(self.folder / "student"),
                    "length": LENGTH,
                    "block_size": BLOCK,
                },
                "teacher": {"model": "unused", "attention": {"type": "full"}},
                "targets": {"type": "tokens", "k": 8, "tail": {"type": "sketch", "step": 0.1}},
                "cache": {"path": str(self.folder / "cache")},
                "objective": {"type": objective},
                "train": {
                    "output": str(self.folder / output),
                    "precision": "fp32",
                    "device": "cpu",
                    "batch_size": 2,
                    "trackers": [],
                    **train,
                },
            },
            where="benchmark",
        )

    @property
    def bytes_per_position(self) -> float:
        """On disk, everything in the shards."""
        ledger = [json.loads(p.read_text()) for p in (self.folder / "cache" / "ledger").iterdir()]
        size = sum(file["size"] for entry in ledger for file in entry["files"])
        return size / sum(entry["counts"]["num_masked"] for entry in ledger)


def _identity(tokenizer: str) -> CacheIdentity:
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
        student_tokenizer=tokenizer,
        teacher_tokenizer=tokenizer,
        lengths=LengthsIdentity(
            student_length=LENGTH, teacher_length=LENGTH, student_block_size=BLOCK
        ),
        records="benchmark",
        noise=NoiseIdentity(seed=0, eps=EPS, demo_ratio=None),
        kept=KeptIdentity(
            top_k=8,
            logits_dtype="float16",
            temperatures=TEMPERATURES,
            vocab_size=VOCAB,
            tail=SketchTail(
                asks="step", amount=0.1, temperature=2.0, rank=RANK, calibration_records=1
            ),
        ),
    )


def random_pair(
    rng: np.random.Generator, name: str, *, length: int, response: int, vocab_size: int
) -> Pair:
    """A record of which every token of the response is a chunk of its own."""
    ids_S = rng.integers(2, vocab_size, length, dtype=np.int32)
    token = np.arange(length - response, length, dtype=np.int32)
    return Pair(
        record_id=name,
        student_ids_S=ids_S,
        is_target_S=np.arange(length) >= length - response,
        teacher_ids_T=ids_S,
        chunks_C4=np.stack([token, token + 1, token, token + 1], axis=1),
    )


def random_answer(
    rng: np.random.Generator, pair: Pair, view: int, *, vocab_size: int, rank: int
) -> tuple[Corruption, Targets]:
    """One draw of noise, and some teacher's answer to it."""
    noise = corrupt(pair, seed=0, view=view, eps=EPS)
    chunk_C = np.flatnonzero(noise.is_masked_C).astype(np.int32)
    num_rows = len(chunk_C)
    logits_MK = -np.sort(-3 * rng.standard_normal((num_rows, 8), dtype=np.float32), axis=1)
    tokens = KeptTargets(
        ids_MK=rng.integers(0, vocab_size, (num_rows, 8), dtype=np.int32),
        logits_MK=logits_MK,
        logsumexp_MJ=logits_MK[:, :1] + rng.random((num_rows, 2), dtype=np.float32),
        gold_logp_M=-3 * rng.random(num_rows, dtype=np.float32),
        sketch_MR=_sketch(rng, num_rows, rank),
        temperatures=TEMPERATURES,
        vocab_size=vocab_size,
    )
    targets = Targets(
        chunk_C=chunk_C,
        pass_C=np.zeros(num_rows, np.int8),
        logp_C=tokens.gold_logp_M,
        tokens=tokens,
    )
    return noise, targets


def _scale_R(rank: int) -> np.ndarray:
    """Root mean squares that fall as a trained teacher's do: a hundred bytes a row or so."""
    return 16 * np.arange(1, rank + 1) ** -0.75


def _sketch(rng: np.random.Generator, num_rows: int, rank: int) -> np.ndarray:
    rows_MR = rng.standard_normal((num_rows, rank), dtype=np.float32) * _scale_R(rank)
    return np.rint(rows_MR).astype(np.int16)


def _basis(rng: np.random.Generator) -> Basis:
    return Basis(
        mean_H=np.zeros(RANK, np.float32),
        encode_HR=np.eye(RANK, dtype=np.float32),
        scale_R=_scale_R(RANK).astype(np.float32),
        decode_RV=rng.standard_normal((RANK, VOCAB)).astype(np.float16),
        base_V=rng.standard_normal(VOCAB).astype(np.float32),
        bias_V=np.zeros(VOCAB, np.float32),
        step=0.1,
        temperature=2.0,
        coder=fit_coder(_sketch(rng, 4096, RANK)),
    )


def _report() -> Calibration:
    return Calibration(
        positions=4096,
        search_positions=0,
        hidden_size=RANK,
        rank=RANK,
        step=0.1,
        bytes_per_position=None,
        overfit_bytes=None,
        kl={},
        grad_error=None,
    )


def _shards(rng: np.random.Generator) -> Iterator[ShardContent]:
    for part in range(NUM_SHARDS):
        examples = [
            random_pair(rng, f"{part}/{i}", length=LENGTH, response=RESPONSE, vocab_size=VOCAB)
            for i in range(RECORDS_A_SHARD)
        ]
        views: list[StoredView] = []
        for example, pair in enumerate(examples):
            for view in range(VIEWS):
                noise, targets = random_answer(rng, pair, view, vocab_size=VOCAB, rank=RANK)
                views.append(StoredView(example=example, corruption=noise, targets=targets))
        yield ShardContent(
            part=part,
            view_start=0,
            view_stop=VIEWS,
            examples=tuple(examples),
            views=tuple(views),
            skips=(),
        )
