"""Short views at several noise levels, with every model's answers to some of what is masked.

Axes: S student position, P position of an answered chunk, C answered chunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.report.answers import Answers
from pipeline.report.view_contents import ChunkRow, Distribution, Example, Likely, Place, Segment
from pipeline.report.views import CachedViews, masks_of, positions_of
from pipeline.stream.collate import View
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.examples import Ints

_EDGES = (0.0, 0.3, 0.55, 0.8, 1.0)  # of noise; an example from each stretch
_NUM_PLACES = 4
_NUM_CHUNKS = 10
_FEW = 3  # chunks: too little to show
_PROMPT_BYTES = 600  # of a longer prompt the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One model's answers: its label, and its setting's key (the teacher has none)."""

    label: str
    setting: str | None
    answers: Answers


def examples(
    views: CachedViews, asked: Sequence[Asked], tokenizer: ChatTokenizer
) -> tuple[Example, ...]:
    """The shortest view of each stretch of noise; the same for equal caches."""
    texts = tokenizer.vocabulary()
    found: list[Example] = []
    for low, high in pairwise(_EDGES):
        inside = [i for i, view in enumerate(views.views) if low <= view.corruption.time < high]
        if inside:
            shown = {one.record_id for one in found}
            index = min(inside, key=lambda i, shown=shown: _order(views.views[i], shown))
            found.append(_example(views, index, asked, texts))
    return tuple(found)


def _order(view: View, shown: set[str]) -> tuple[bool, bool, int, str]:
    """Shortest first; records with too little to show, or shown before, come last."""
    record_id = view.pair.record_id
    num_tokens = len(view.pair.student_ids_S)
    return len(view.targets.chunk_C) < _FEW, record_id in shown, num_tokens, record_id


def _example(views: CachedViews, index: int, asked: Sequence[Asked], texts: list[bytes]) -> Example:
    view = views.views[index]
    position_P = positions_of(view)
    first_P = sum(len(positions_of(one)) for one in views.views[:index])
    first_C = sum(len(one.targets.chunk_C) for one in views.views[:index])
    has_chunks = not views.has_tokens
    num = len(view.targets.chunk_C) if has_chunks else len(position_P)
    chosen = _spread(num, _NUM_CHUNKS if has_chunks else _NUM_PLACES)
    numbers: dict[int, int] = {}  # student position -> the number that it bears
    places: list[Place] = []
    chunks: list[ChunkRow] = []
    for number, at in enumerate(chosen, start=1):
        if has_chunks:
            s0, s1 = view.pair.chunks_C4[view.targets.chunk_C[at], 2:].tolist()
            numbers |= dict.fromkeys(range(s0, s1), number)
            teacher = {views.teacher: float(view.targets.logp_C[at])}
            logp = {one.label: float(one.answers.logp_C[first_C + at]) for one in asked}
            text = _text(view.pair.student_ids_S[s0:s1], texts)
            chunks.append(ChunkRow(number=number, text=text, logp=teacher | logp))
        else:
            position = int(position_P[at])
            numbers[position] = number
            true_id = int(view.pair.student_ids_S[position])
            places.append(
                Place(
                    number=number,
                    true_text=_text([true_id], texts),
                    distributions=tuple(
                        _distribution(one, first_P + at, true_id, texts) for one in asked
                    ),
                )
            )
    return Example(
        record_id=view.pair.record_id,
        view=view.corruption.view,
        time=view.corruption.time,
        segments=_segments(view, numbers, texts),
        places=tuple(places),
        chunks=tuple(chunks),
    )


def _spread(count: int, wanted: int) -> list[int]:
    """Indices from first to last, at equal distances."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, wanted)).round())]


def _distribution(one: Asked, row: int, true_id: int, texts: list[bytes]) -> Distribution:
    ids = one.answers.likely_id_PK[row].tolist()
    shares = one.answers.likely_p_PK[row].tolist()
    return Distribution(
        label=one.label,
        setting=one.setting,
        tokens=tuple(
            Likely(text=_text([i], texts), probability=p, is_true=i == true_id)
            for i, p in zip(ids, shares, strict=True)
        ),
        true_probability=float(np.exp(np.float64(one.answers.logp_P[row]))),
    )


def _segments(view: View, numbers: Mapping[int, int], texts: list[bytes]) -> tuple[Segment, ...]:
    """The text up to the response's end, cut where the masking or a number changes."""
    ids, is_masked_S = view.pair.student_ids_S, masks_of(view)
    stop = int(view.pair.chunks_C4[-1, 3])
    start = _prompt_start(view, texts)
    segments: list[Segment] = []
    for position in range(start, stop):
        state = bool(is_masked_S[position]), numbers.get(position)
        if position + 1 < stop and state == (
            bool(is_masked_S[position + 1]),
            numbers.get(position + 1),
        ):
            continue
        text = _text(ids[start : position + 1], texts)
        segments.append(Segment(text=text, is_masked=state[0], number=state[1]))
        start = position + 1
    return tuple(segments)


def _prompt_start(view: View, texts: list[bytes]) -> int:
    """Where the shown part of the prompt begins."""
    start = int(view.pair.is_target_S.argmax())
    num_bytes = 0
    while start > 0 and num_bytes < _PROMPT_BYTES:
        start -= 1
        num_bytes += len(texts[int(view.pair.student_ids_S[start])])
    return start


def _text(ids: Ints | list[int], texts: list[bytes]) -> str:
    """What tokens stand for; one of which the tokenizer knows no text is named by its id."""
    parts = [texts[i] if i < len(texts) and texts[i] else f"<{i}>".encode() for i in map(int, ids)]
    return b"".join(parts).decode("utf-8", errors="replace")
