"""What must hold of a shard's content, whatever its hashes say: one sentence a contradiction.

Axes: S student position, T teacher position, C chunk, M token row, K kept logit, J temperature,
R sketch dimension, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.encode import answered_chunks, count, encode_tables
from pipeline.diffusion.compdemo import teacher_passes
from pipeline.diffusion.corrupt import corrupt
from storage_schemas.basis import Basis
from storage_schemas.examples import Bools, Ints, Pair
from storage_schemas.identity import CacheIdentity
from storage_schemas.manifest import LedgerEntry
from storage_schemas.parquet_layout import TABLES, Table, decode_table
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.targets import KeptTargets

Doubles = NDArray[np.float64]
Check = tuple[str, Bools]
"""What is expected of token rows, and the rows in which it is not so."""

_HALF = 2.0**-11  # relative rounding of a float16
_SLACK = 1e-4  # nats; float32 sums over a vocabulary end nearer than this
_SLACK_SHARE = 1e-5  # of the number itself
_SKETCH_ROWS = 1024  # rows of a shard whose sketch is held against the top k
_BLOCK_ROWS = 64
_BLOCK_NUMBERS = 2**22  # kept logits that are looked at together
_LEAST_LOGITS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a cache says of all its shards; sizes of vocabularies are None where unreadable."""

    identity: CacheIdentity
    basis: Basis | None
    student_size: int | None
    teacher_size: int | None


def contradictions(
    content: ShardContent, entry: LedgerEntry, files: Mapping[str, bytes], expected: Expected
) -> Iterator[str]:
    """What a shard's content says against the ledger, the seeds, its columns and arithmetic."""
    yield from _counts(content, entry)
    yield from _examples(content, expected)
    yield from _views(content, expected.identity)
    yield from _columns(content, files, expected.identity)
    yield from _chunk_sums(content)
    yield from _tokens(content, expected)


def _tokens(content: ShardContent, expected: Expected) -> Iterator[str]:
    found = [view.targets.tokens for view in content.views]
    kept = [one for one in found if isinstance(one, KeptTargets)]
    if not kept:
        return
    rows = KeptTargets.joined(kept)
    gold_id_M = np.concatenate(
        [
            content.examples[view.example].teacher_ids_T[view.corruption.is_masked_T]
            for view in content.views
        ]
    )
    if len(gold_id_M) != len(rows.gold_logp_M):
        yield f"expected {len(gold_id_M)} masked teacher tokens' rows, got {len(rows.gold_logp_M)}"
        return
    is_half = expected.identity.kept.logits_dtype == "float16"
    bad: dict[str, list[Bools]] = {}
    size = max(1, _BLOCK_NUMBERS // max(1, rows.ids_MK.shape[1]))
    for start in range(0, len(gold_id_M), size):
        block = rows.rows(start, start + size)
        for what, is_bad_M in _row_checks(block, gold_id_M[start : start + size], is_half=is_half):
            bad.setdefault(what, []).append(is_bad_M)
    for what, parts in bad.items():
        is_bad_M = np.concatenate(parts)
        if is_bad_M.any():
            yield (
                f"expected {what}, got others in {int(is_bad_M.sum())} of {len(is_bad_M)} token "
                f"rows, the first is row {int(is_bad_M.argmax())}"
            )
    yield from _sketch(rows, expected.basis)


def _counts(content: ShardContent, entry: LedgerEntry) -> Iterator[str]:
    told, found = entry.counts.model_dump(), count(content).model_dump()
    for name, number in found.items():
        if told[name] != number:
            yield f"expected {name} {told[name]}, as the ledger says, got {number}"
    got = [(view.example, view.corruption.view) for view in content.views]
    want = ((row, view) for row in range(len(content.examples)) for view in entry.views)
    num_wanted = len(content.examples) * len(entry.views)
    if len(got) != num_wanted or any(a != b for a, b in zip(got, want, strict=True)):
        yield (
            f"expected views {entry.view_start} to {entry.view_stop - 1} of each of "
            f"{len(content.examples)} examples, got {len(got)} views that are not those"
        )


def _examples(content: ShardContent, expected: Expected) -> Iterator[str]:
    lengths, block = expected.identity.lengths, expected.identity.teacher.block_size
    is_shared = expected.identity.pipeline == "shared_tokenizer"
    checks: list[tuple[str, Callable[[Pair], bool]]] = [
        (
            "student sequences of whole blocks within the length",
            lambda pair: (
                0 < len(pair.student_ids_S) <= lengths.student_length
                and len(pair.student_ids_S) % lengths.student_block_size == 0
            ),
        ),
        (
            "teacher sequences within the length (block-wise: of whole blocks)",
            lambda pair: (
                0 < len(pair.teacher_ids_T) <= lengths.teacher_length
                and len(pair.teacher_ids_T) % (block or 1) == 0
            ),
        ),
        (
            "token ids of the vocabularies",
            lambda pair: (
                _are_ids(pair.student_ids_S, expected.student_size)
                and _are_ids(pair.teacher_ids_T, expected.teacher_size)
            ),
        ),
        ("chunks in order, disjoint, inside their sequences", _has_sound_chunks),
        (
            "chunks on maskable positions alone",
            lambda pair: all(pair.is_target_S[s0:s1].all() for _, _, s0, s1 in pair.chunks_C4),
        ),
        (
            "chunks of one token with the same id on both sides",
            lambda pair: not is_shared or _is_one_to_one(pair),
        ),
    ]
    for what, holds in checks:
        yield from _summed(
            f"expected {what}, got others in",
            [f"record {pair.record_id}" for pair in content.examples if not holds(pair)],
        )


def _are_ids(ids: Ints, size: int | None) -> bool:
    return bool(ids.min() >= 0) and (size is None or bool(ids.max() < size))


def _has_sound_chunks(pair: Pair) -> bool:
    for axis, length in ((0, len(pair.teacher_ids_T)), (2, len(pair.student_ids_S))):
        edges = pair.chunks_C4[:, axis : axis + 2].reshape(-1)
        steps = np.diff(edges)
        if len(edges) and (edges[0] < 0 or edges[-1] > length or (steps < 0).any()):
            return False
        if (steps[::2] == 0).any():
            return False
    return True


def _is_one_to_one(pair: Pair) -> bool:
    t0, t1, s0, s1 = pair.chunks_C4.T
    return bool(
        (t1 - t0 == 1).all()
        and (s1 - s0 == 1).all()
        and (pair.teacher_ids_T[t0] == pair.student_ids_S[s0]).all()
    )


def _views(content: ShardContent, identity: CacheIdentity) -> Iterator[str]:
    """Times, masks and passes, drawn again from the seed."""
    noise = identity.noise
    wrong: dict[str, list[str]] = {"time": [], "mask": [], "answered chunks": [], "pass": []}
    for stored in content.views:
        pair, got = content.examples[stored.example], stored.corruption
        where = f"record {pair.record_id} view {got.view}"
        want = corrupt(pair, seed=noise.seed, view=got.view, eps=noise.eps, times=noise.times)
        if want.time != got.time:
            wrong["time"].append(f"{where} ({got.time}, not {want.time})")
        if not np.array_equal(want.is_masked_S, got.is_masked_S):
            differ = int((want.is_masked_S != got.is_masked_S).sum())
            wrong["mask"].append(f"{where} ({differ} positions)")
        elif not np.array_equal(stored.targets.chunk_C, np.flatnonzero(want.is_masked_C)):
            wrong["answered chunks"].append(where)
        elif not np.array_equal(stored.targets.pass_C, _passes(stored, pair, identity)):
            wrong["pass"].append(where)
    for name, places in wrong.items():
        yield from _summed(f"expected the {name} that seed {noise.seed} gives, got another", places)


def _passes(stored: StoredView, pair: Pair, identity: CacheIdentity) -> NDArray[np.int8]:
    passes = teacher_passes(
        pair,
        stored.corruption,
        mask_id=0,  # no matter which: only who answers what is asked
        seed=identity.noise.seed,
        demo_ratio=identity.noise.demo_ratio,
    )
    pass_C = np.full(len(stored.targets.chunk_C), -1, np.int8)
    for number, one in enumerate(passes):
        pass_C[one.is_answered_C[stored.targets.chunk_C]] = number
    return pass_C


def _columns(
    content: ShardContent, files: Mapping[str, bytes], identity: CacheIdentity
) -> Iterator[str]:
    """Columns that reading does not need, such as a chunk's spans, against those that it does."""
    written = encode_tables(content, identity.kept)
    for name, kinds in TABLES.items():
        got, want = decode_table(kinds, files[name]), decode_table(kinds, written[name])
        for column in kinds:
            if not _same_column(got, want, column):
                yield f"expected {name} of one piece, got a column {column!r} that contradicts it"


def _same_column(left: Table, right: Table, name: str) -> bool:
    if name in left.texts:
        return left.texts[name] == right.texts[name]
    if name in left.arrays:
        one, other = left.arrays[name], right.arrays[name]
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    one, other = left.lists[name], right.lists[name]
    return np.array_equal(one.lengths, other.lengths) and np.array_equal(one.values, other.values)


def _chunk_sums(content: ShardContent) -> Iterator[str]:
    """Chunk likelihoods: none above 0, and each the sum of its tokens' where those are kept."""
    above: list[str] = []
    unequal: list[str] = []
    for stored in content.views:
        where = f"record {content.examples[stored.example].record_id} view {stored.corruption.view}"
        targets = stored.targets
        if not (targets.logp_C <= _SLACK).all():
            above.append(where)
        if isinstance(targets.tokens, KeptTargets) and len(targets.chunk_C):
            size_C = np.diff(answered_chunks(content, stored)[:, :2], axis=1)[:, 0]
            gold_logp_M = targets.tokens.gold_logp_M.astype(np.float64)
            sum_C = np.add.reduceat(gold_logp_M, np.cumsum(size_C) - size_C)
            if not np.allclose(sum_C, targets.logp_C, rtol=1e-6, atol=1e-30):
                unequal.append(where)
    yield from _summed("expected log-likelihoods of chunks of at most 0, got others in", above)
    yield from _summed("expected chunks' logp to be the sum of their tokens', got others", unequal)


def _row_checks(rows: KeptTargets, gold_id_M: Ints, *, is_half: bool) -> Iterator[Check]:
    yield from _normalizers(rows)
    if rows.ids_MK.shape[1]:
        yield from _top_k(rows)
        yield from _bounds(rows, gold_id_M, is_half=is_half)


def _normalizers(rows: KeptTargets) -> Iterator[Check]:
    """Log-likelihoods and logsumexps, without the top k."""
    yield ("a log-likelihood of at most 0", ~(rows.gold_logp_M <= _SLACK))
    yield ("a finite logsumexp", ~_all(np.isfinite(rows.logsumexp_MJ)))
    order: list[int] = np.argsort(rows.temperatures).tolist()
    for low, high in pairwise(order):
        t_low, t_high = rows.temperatures[low], rows.temperatures[high]
        low_M, high_M = (rows.logsumexp_MJ[:, j].astype(np.float64) for j in (low, high))
        slack_M = (t_low + t_high) * (_SLACK + _SLACK_SHARE * np.abs(low_M))
        rise_M = t_high * high_M - t_low * low_M
        most = (t_high - t_low) * np.log(rows.vocab_size)
        yield (
            f"T logsumexp(z / T) to rise from T = {t_low} to {t_high} as entropy has it, by 0 to "
            f"{most:.4g}",
            (rise_M < -slack_M) | (rise_M > most + slack_M),
        )


def _top_k(rows: KeptTargets) -> Iterator[Check]:
    """Ids and logits in rank order."""
    ids_MK, logits_MK = rows.ids_MK, rows.logits_MK
    sorted_MK = np.sort(ids_MK, axis=1)
    yield (f"kept ids below {rows.vocab_size}", ~_all((ids_MK >= 0) & (ids_MK < rows.vocab_size)))
    yield ("each kept id once", ~_all(sorted_MK[:, 1:] != sorted_MK[:, :-1]))
    yield ("kept logits that are numbers", ~_all(logits_MK < np.inf))
    yield ("kept logits from high to low", ~_all(logits_MK[:, 1:] <= logits_MK[:, :-1]))


def _bounds(rows: KeptTargets, gold_id_M: Ints, *, is_half: bool) -> Iterator[Check]:
    """What the kept logits allow the logsumexps and the true token's log-likelihood to be."""
    logits_MK = rows.logits_MK.astype(np.float64)
    slack_MK = np.full_like(logits_MK, _SLACK) + _SLACK_SHARE * np.abs(logits_MK[:, :1])
    if is_half:  # their distance from the first was rounded
        distance_MK = np.where(np.isfinite(logits_MK), logits_MK[:, :1] - logits_MK, 0.0)
        slack_MK = slack_MK + _HALF * distance_MK
    most_MK = logits_MK + slack_MK
    num_others = rows.vocab_size - logits_MK.shape[1]
    for j, t in enumerate(rows.temperatures):
        logsumexp_M = rows.logsumexp_MJ[:, j].astype(np.float64)
        slack_M = _SLACK + _SLACK_SHARE * np.abs(logsumexp_M)
        least_M = _logsumexp((logits_MK - slack_MK) / t)
        all_M = _logsumexp(most_MK / t)
        if num_others:
            all_M = np.logaddexp(all_M, np.log(num_others) + most_MK[:, -1] / t)
        yield (
            f"a logsumexp at T = {t} of at least the kept logits' own",
            logsumexp_M < least_M - slack_M,
        )
        yield (
            f"a logsumexp at T = {t} that the smallest kept logit allows",
            logsumexp_M > all_M + slack_M,
        )
        if t == 1.0:
            is_gold_MK = rows.ids_MK == gold_id_M[:, None]
            of_gold_M = np.where(is_gold_MK, most_MK, -np.inf).max(axis=1)
            of_gold_M = np.where(is_gold_MK.any(axis=1), of_gold_M, most_MK[:, -1])
            yield (
                "a true token no likelier than its logit has it",
                (gold_id_M < rows.vocab_size)
                & (rows.gold_logp_M > of_gold_M - logsumexp_M + slack_M),
            )


def _logsumexp(values_MK: Doubles) -> Doubles:
    return np.logaddexp.reduce(values_MK, axis=1)


def _all(holds_MK: Bools) -> Bools:
    return np.asarray(holds_MK.all(axis=1))


def _sketch(rows: KeptTargets, basis: Basis | None) -> Iterator[str]:
    """Sketches must tell the kept logits of their own rows better than those of other rows.

    By squares, up to a constant a row, over a sample. With x what there is to tell, q the row's own
    sketch and p another's, |x - p|^2 - |x - q|^2 is about |p - q|^2, and about 0 if q is of another
    row too. Few rows, or sketches too coarse to differ much, prove nothing.
    """
    num_rows, k = rows.ids_MK.shape
    sample = np.fromiter(range(0, num_rows, max(1, num_rows // _SKETCH_ROWS)), np.int64)
    if basis is None or not basis.rank or len(sample) * (k - 1) < _LEAST_LOGITS:
        return
    half = len(sample) // 2
    others = np.concatenate([sample[half:], sample[:half]])
    own, foreign, apart = 0.0, 0.0, 0.0
    for at in range(0, len(sample), _BLOCK_ROWS):
        chosen, other = sample[at : at + _BLOCK_ROWS], others[at : at + _BLOCK_ROWS]
        ids_MK = np.clip(rows.ids_MK[chosen], 0, basis.vocab_size - 1)
        seen_MKR = basis.decode_RV.T[ids_MK].astype(np.float32)
        rest_MK = rows.logits_MK[chosen].astype(np.float64) - basis.base_V[ids_MK]
        rest_MK = np.where(np.isfinite(rest_MK), rest_MK, 0.0)
        own_MK, foreign_MK = (
            np.einsum("mr,mkr->mk", rows.sketch_MR[which] * np.float32(basis.step), seen_MKR)
            for which in (chosen, other)
        )
        own += _spread(rest_MK - own_MK)
        foreign += _spread(rest_MK - foreign_MK)
        apart += _spread(own_MK - foreign_MK)
    if apart > own / 2 and foreign - own < apart / 2:
        yield (
            f"expected sketches of these rows, got some that tell their kept logits (squared error "
            f"{own:.3g}) hardly better than other rows' do ({foreign:.3g})"
        )


def _spread(values_MK: NDArray[Any]) -> float:
    values_MK = values_MK.astype(np.float64)
    return float(((values_MK - values_MK.mean(axis=1, keepdims=True)) ** 2).sum())


def _summed(what: str, places: list[str]) -> Iterator[str]:
    if places:
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        yield f"{what}: {places[0]}{more}"
