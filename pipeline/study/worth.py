"""Whether a teacher is worth learning from: its held-out likelihood for each byte of text.

A token of one tokenizer is not a token of another; a byte is a byte. Every model is asked the way
stage 1 asks a teacher, on the same functions, each with masks of its own tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.models import BlockAttention, FullAttention, TeacherConfig
from pipeline.demo.corpus import ASSETS
from pipeline.diffusion.corrupt import draw_mask
from pipeline.evaluate.heldout import LEVELS
from pipeline.study.arms import Split
from pipeline.study.data import BLOCK_SIZE, LENGTH, TEACHER_LENGTH, held_out_records
from pipeline.teacher.answer import all_finite, answer_views
from pipeline.teacher.keep import KeepChunks
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.text.pair import make_pair
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.examples import Pair, Record
from storage_schemas.views import Corruption

_SEED = 0
_BLOCKS = BlockAttention(type="block", block_size=BLOCK_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """A bound on the negative log-likelihood, in nats a byte and a token of the model's own."""

    nats_per_byte: float
    nats_per_token: float
    tokens: int
    bytes: int


def worth_of_models(split: Split, start: Path) -> dict[str, Worth]:
    """The start, the demo's student and both teachers, on functions that all of them read whole."""
    models = {
        "the study's start": (start, _BLOCKS),
        "the demo's student": (ASSETS / "student", _BLOCKS),
        "teacher A": (ASSETS / "teacher-a", FullAttention()),
        "teacher B": (ASSETS / "teacher-b", _BLOCKS),
    }
    folders = [str(folder) for folder, _ in models.values()]
    tokenizers = [ChatTokenizer.load(folder) for folder in folders]
    records = [
        record
        for record in held_out_records(split)
        if all(_is_whole(record, tokenizer) for tokenizer in tokenizers)
    ]
    return {
        name: _worth(folder, attention, tokenizer, records)
        for (name, (_, attention)), folder, tokenizer in zip(
            models.items(), folders, tokenizers, strict=True
        )
    }


def _worth(
    folder: str,
    attention: FullAttention | BlockAttention,
    tokenizer: ChatTokenizer,
    records: list[Record],
) -> Worth:
    block_size = attention.block_size if isinstance(attention, BlockAttention) else None
    config = TeacherConfig(
        model=folder, attention=attention, length=TEACHER_LENGTH, dtype="float32", device="cpu"
    )
    backend = TransformersBackend.load(config, block_size=block_size)
    pairs = [_pair(record, tokenizer, block_size) for record in records]
    views = [
        (pair, _noise(pair, index, level)) for pair in pairs for index, level in enumerate(LEVELS)
    ]
    answers = answer_views(
        backend, views, mask_id=tokenizer.mask_id, seed=_SEED, demo_ratio=None, keep=KeepChunks()
    )
    nats = sum(
        -float(np.sum(targets.logp_C, dtype=np.float64)) / noise.time
        for targets, (_, noise) in zip(all_finite(views, answers), views, strict=True)
    ) / len(LEVELS)
    tokens = sum(len(pair.chunks_C4) for pair in pairs)
    size = sum(len(record.messages[-1].content.encode()) for record in records)
    return Worth(nats_per_byte=nats / size, nats_per_token=nats / tokens, tokens=tokens, bytes=size)


def _noise(pair: Pair, index: int, level: float) -> Corruption:
    """Each token of the text by itself; its number is a key that no view of training has."""
    is_masked_S = draw_mask(
        pair.is_target_S, level, seed=_SEED, record_id=pair.record_id, view=-1 - index
    )
    first_C = pair.chunks_C4[:, 0]
    is_masked_C = is_masked_S[first_C]
    is_masked_T = np.zeros(len(pair.teacher_ids_T), dtype=np.bool_)
    is_masked_T[first_C[is_masked_C]] = True
    return Corruption(
        view=-1 - index,
        time=level,
        is_masked_S=is_masked_S,
        is_masked_T=is_masked_T,
        is_masked_C=is_masked_C,
    )


def _pair(record: Record, tokenizer: ChatTokenizer, block_size: int | None) -> Pair:
    """A model beside itself: the chunks are the tokens of the text, one by one."""
    return make_pair(
        record,
        tokenizer,
        tokenizer,
        student_length=TEACHER_LENGTH,
        teacher_length=TEACHER_LENGTH,
        block_size=BLOCK_SIZE,
        teacher_block_size=block_size,
        is_shared_vocab=False,
    )


def _is_whole(record: Record, tokenizer: ChatTokenizer) -> bool:
    """Whether the response is cut nowhere."""
    pair = _pair(record, tokenizer, None)
    return int(pair.chunks_C4[-1, 3]) < LENGTH
