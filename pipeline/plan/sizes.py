"""Bytes on disk by kind of file: a sample shard goes through the cache's own encoder.

The tables are those of real pairs and masks. What the teacher would say is drawn at random: ids
evenly over the vocabulary and logits that fall with the logarithm of the rank, which takes about
as much room as a real teacher's or more. A measured shard holds the teacher's own.

Axes: M answered teacher position, K kept logit, J temperature, C answered chunk.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.cache.encode import count, encode_shard
from pipeline.cache.files import file_entry
from pipeline.diffusion.corrupt import corrupt
from storage_schemas.basis import Basis
from storage_schemas.examples import Pair
from storage_schemas.identity import KeptIdentity, NoiseIdentity, SketchTail
from storage_schemas.manifest import SHARDS_FOLDER, Counts, LedgerEntry
from storage_schemas.seal import sealed_json
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.sketch_coder import NUM_TABLES, TOP
from storage_schemas.skips import Skip
from storage_schemas.targets import Floats, KeptTargets, Targets
from storage_schemas.views import Corruption
from storage_schemas.zarr_layout import TOKENS_FOLDER, encode_group

ROW_KINDS = ("top k", "scalars", "sketch")
SHARD_KINDS = ("examples", "views", "chunks", "skips", *ROW_KINDS)
_KINDS = {
    "examples.parquet": "examples",
    "views.parquet": "views",
    "chunks.parquet": "chunks",
    "skips.parquet": "skips",
    "ids_low": "top k",
    "ids_high": "top k",
    "logits": "top k",
    "logit_max": "top k",
    "logit_step": "top k",
    "sketch": "sketch",
}
_SAMPLE_ROWS = 2**14  # a shard's sample: beyond, a row costs the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What files of each kind cost: so much a shard, and so much an item (see `num_items`)."""

    a_shard: Mapping[str, float]
    an_item: Mapping[str, float]

    def total(self, counts: Counts, num_shards: int) -> dict[str, int]:
        """Bytes of a whole cache's shards, by kind."""
        return {
            kind: round(num_shards * self.a_shard[kind] + items * self.an_item[kind])
            for kind, items in num_items(counts).items()
        }


def kind_of(path: str) -> str:
    """What a file of a shard, by its path under the shard's folder, is counted as."""
    name = path.removeprefix(f"{TOKENS_FOLDER}/").partition("/")[0]
    return _KINDS.get(name, "scalars")


def num_items(counts: Counts) -> dict[str, int]:
    """What the bytes of each kind grow with."""
    rows = counts.num_token_rows
    return {
        "examples": counts.num_examples,
        "views": counts.num_views,
        "chunks": counts.num_chunks,
        "skips": sum(counts.skips.values()),
        **dict.fromkeys(ROW_KINDS, rows),
        "ledger": 0,
    }


def rates_of(content: ShardContent, kept: KeptIdentity, basis: Basis | None) -> Rates:
    """What this shard's files cost, by comparing them with those of its first half.

    Without a basis a sketch is left out, and costs nothing.
    """
    bare = _without_sketch(kept) if basis is None else kept
    half = _half(content)
    sizes, sizes_of_half = _sizes(content, bare, basis), _sizes(half, bare, basis)
    if bare.top_k > kept.top_k:
        sizes["top k"] = sizes_of_half["top k"] = 0
    items, items_of_half = num_items(count(content)), num_items(count(half))
    an_item = {
        kind: max(0, sizes[kind] - sizes_of_half[kind]) / max(1, num - items_of_half[kind])
        for kind, num in items.items()
    }
    a_shard = {kind: max(0.0, sizes[kind] - num * an_item[kind]) for kind, num in items.items()}
    return Rates(a_shard=a_shard, an_item=an_item)


def sketch_rates(num_bytes: float) -> tuple[float, float]:
    """Bytes of a sketch a shard and a position, where a position's are known."""
    overhead = sum(map(len, encode_group({"sketch": np.zeros(1, np.uint8)}).values()))
    return float(overhead), num_bytes


def basis_bytes(hidden_size: int, rank: int, vocab_size: int) -> int:
    """Bytes of the decoder and what goes with it, before compression, which takes little off.

    Without a sketch (rank 0) it is the mean logit.
    """
    if not rank:
        return 4 * (hidden_size + vocab_size)
    decode, encode = rank * vocab_size * 2, hidden_size * rank * 4
    coder = NUM_TABLES * (2 * TOP + 1) * 2
    return decode + encode + coder + 4 * (hidden_size + rank + 2 * vocab_size)


def sample_shard(
    pairs: Sequence[Pair],
    skips: Sequence[Skip],
    noise: NoiseIdentity,
    kept: KeptIdentity,
    *,
    num_views: int,
    records_per_part: int,
) -> ShardContent:
    """A shard of real pairs and masks with random answers, of at most some 16,384 positions."""
    bare = _without_sketch(kept)
    rng = np.random.default_rng(0)
    examples: list[Pair] = []
    views: list[StoredView] = []
    num_rows = 0
    for pair in pairs[:records_per_part]:
        if num_rows >= _SAMPLE_ROWS:
            break
        for view in range(num_views):
            noised = corrupt(pair, seed=noise.seed, view=view, eps=noise.eps, times=noise.times)
            targets = _random_targets(rng, pair, noised, bare)
            num_rows += int(noised.is_masked_T.sum())
            views.append(StoredView(example=len(examples), corruption=noised, targets=targets))
        examples.append(pair)
    return ShardContent(
        part=0,
        view_start=0,
        view_stop=num_views,
        examples=tuple(examples),
        views=tuple(views),
        skips=tuple(skips[:records_per_part]),
    )


def _random_targets(
    rng: np.random.Generator, pair: Pair, noised: Corruption, kept: KeptIdentity
) -> Targets:
    chunk_C = np.flatnonzero(noised.is_masked_C).astype(np.int32)
    size_C = np.diff(pair.chunks_C4[chunk_C, :2], axis=1)[:, 0]
    gold_logp_M = -rng.standard_exponential(int(size_C.sum()), np.float32)
    # a chunk's is the sum of its tokens', as a teacher's would be
    logp_C = np.add.reduceat(gold_logp_M, size_C.cumsum() - size_C) if len(size_C) else gold_logp_M
    return Targets(
        chunk_C=chunk_C,
        pass_C=rng.integers(0, 2, len(chunk_C), dtype=np.int8),
        logp_C=logp_C,
        tokens=_random_rows(rng, gold_logp_M, kept) if kept.has_tokens else None,
    )


def _random_rows(rng: np.random.Generator, gold_logp_M: Floats, kept: KeptIdentity) -> KeptTargets:
    num_rows = len(gold_logp_M)
    rank_K = np.arange(1, kept.top_k + 1)
    fall_MK = rng.standard_exponential((num_rows, kept.top_k)) / rank_K
    top_M = rng.normal(12, 3, (num_rows, 1))
    normalizer_MJ = top_M + rng.standard_exponential((num_rows, len(kept.temperatures)))
    return KeptTargets(
        ids_MK=rng.integers(0, kept.vocab_size, (num_rows, kept.top_k), dtype=np.int32),
        logits_MK=(top_M - fall_MK.cumsum(1) + fall_MK[:, :1]).astype(np.float32),
        logsumexp_MJ=normalizer_MJ.astype(np.float32),
        gold_logp_M=gold_logp_M,
        sketch_MR=np.empty((num_rows, 0), np.int16),
        temperatures=kept.temperatures,
        vocab_size=kept.vocab_size,
    )


def _without_sketch(kept: KeptIdentity) -> KeptIdentity:
    """The same rows as a top k alone; of a sketch alone, with one logit to hold their place."""
    if not isinstance(kept.tail, SketchTail):
        return kept
    return kept.model_copy(update={"tail": None, "top_k": max(1, kept.top_k)})


def _half(content: ShardContent) -> ShardContent:
    """The shard of the first half of its examples and skips; of one example, of none."""
    num_examples = len(content.examples) // 2
    return ShardContent(
        part=content.part,
        view_start=content.view_start,
        view_stop=content.view_stop,
        examples=content.examples[:num_examples],
        views=tuple(stored for stored in content.views if stored.example < num_examples),
        skips=content.skips[: len(content.skips) // 2],
    )


def _sizes(content: ShardContent, kept: KeptIdentity, basis: Basis | None) -> Counter[str]:
    files = encode_shard(content, kept, basis)
    sizes: Counter[str] = Counter()
    for path, data in files.items():
        sizes[kind_of(path)] += len(data)
    folder = f"{SHARDS_FOLDER}/{content.name}"
    entry = LedgerEntry(
        shard=content.name,
        folder=folder,
        part=content.part,
        view_start=content.view_start,
        view_stop=content.view_stop,
        files=tuple(file_entry(f"{folder}/{path}", data) for path, data in sorted(files.items())),
        counts=count(content),
    )
    sizes["ledger"] = len(sealed_json(entry))
    return sizes
