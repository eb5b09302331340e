"""Some views of a cache, spread over all noise levels, with the teacher's answers to them.

Axes: S student position, P position of an answered chunk, C answered chunk, all views end to end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from pipeline.cache.reader import CacheReader
from pipeline.config.read import read_fields
from pipeline.stream.collate import View, collate
from pipeline.train.tensors import TensorBatch, as_tensors
from storage_schemas.basis import Basis
from storage_schemas.errors import CacheMissingError
from storage_schemas.examples import Bools, Ints
from storage_schemas.identity import KeptIdentity
from storage_schemas.manifest import RECIPE_FILE, LedgerEntry
from storage_schemas.targets import Floats

_BATCH_TOKENS = 4096  # of a batch's rows, padding included
_ROWS = 512  # positions whose logits exist at one time
_READ = 4  # shards at most


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedViews:
    """The chosen views in order of their noise, and all that is needed to compare answers to them.

    has_tokens: the teacher's distributions are there, one row a P. vocab_size: columns they have.
    """

    address: str
    digest: str
    teacher: str
    has_tokens: bool
    has_compdemo: bool
    student_tokenizer: str
    block_size: int
    kept: KeptIdentity
    basis: Basis | None
    views: tuple[View, ...]

    def batches(self) -> Iterator[TensorBatch]:
        """The views in order, some at a time, each in a row of its own."""
        start = 0
        while start < len(self.views):
            stop, longest = start, 0
            while stop < len(self.views):
                longest = max(longest, len(self.views[stop].pair.student_ids_S))
                if stop > start and (stop + 1 - start) * longest > _BATCH_TOKENS:
                    break
                stop += 1
            batch = collate(self.views[start:stop], has_tokens=self.has_tokens)
            yield as_tensors(
                batch,
                temperature=1.0 if self.has_tokens else None,
                block_size=self.block_size,
                rows_per_block=_ROWS,
            )
            start = stop

    @property
    def logp_C(self) -> Floats:
        """The teacher's log-likelihood of each answered chunk, in nats."""
        return np.concatenate([view.targets.logp_C for view in self.views])

    @property
    def time_C(self) -> Floats:
        """The noise of each chunk's view."""
        return np.concatenate(
            [np.full(len(v.targets.chunk_C), v.corruption.time, np.float32) for v in self.views]
        )

    @property
    def view_P(self) -> Ints:
        """Which view each position is of."""
        return np.repeat(
            np.arange(len(self.views), dtype=np.int32), [len(positions_of(v)) for v in self.views]
        )

    @property
    def time_P(self) -> Floats:
        """The noise of each position's view."""
        times = np.array([view.corruption.time for view in self.views], np.float32)
        return times[self.view_P]


def positions_of(view: View) -> Ints:
    """The student positions of the answered chunks, in order."""
    spans_C2 = view.pair.chunks_C4[view.targets.chunk_C, 2:]
    return np.concatenate([np.arange(s0, s1, dtype=np.int32) for s0, s1 in spans_C2.tolist()])


def masks_of(view: View) -> Bools:
    """What the view masks, by student position."""
    return view.corruption.is_masked_S


def read_views(address: str | Path, *, max_views: int) -> CachedViews:
    """At most so many views with an answered chunk, evenly from all noise levels.

    Which ones depends on the cache alone. At most a few shards are read.
    """
    reader = CacheReader.open(address)
    identity = reader.identity
    has_tokens = identity.kept.has_tokens and identity.pipeline == "shared_tokenizer"
    basis = reader.read_basis() if has_tokens else None
    coder = None if basis is None else basis.coder
    found: list[View] = []
    for entry in sorted(reader.entries, key=_shuffled)[:_READ]:
        content = reader.read_shard(entry, coder, with_top_k=has_tokens)
        found += [
            View(
                pair=content.examples[stored.example],
                corruption=stored.corruption,
                targets=stored.targets,
            )
            for stored in content.views
            if len(stored.targets.chunk_C)
        ]
    if not found:
        raise CacheMissingError(
            f"{address}: expected views with an answered chunk, got none in its shards; make a "
            "cache of longer or other records"
        )
    found.sort(key=lambda view: (view.corruption.time, view.pair.record_id))
    chosen = np.unique(np.linspace(0, len(found) - 1, min(max_views, len(found))).round())
    return CachedViews(
        address=str(address),
        digest=identity.digest,
        teacher=teacher_name(address, identity.teacher.family),
        has_tokens=has_tokens,
        has_compdemo=identity.noise.demo_ratio is not None,
        student_tokenizer=identity.student_tokenizer,
        block_size=identity.lengths.student_block_size,
        kept=identity.kept,
        basis=basis,
        views=tuple(found[int(i)] for i in chosen),
    )


def record_ids(views: CachedViews) -> set[str]:
    """The records that the views are of."""
    return {view.pair.record_id for view in views.views}


def _shuffled(entry: LedgerEntry) -> str:
    return xxhash.xxh32_hexdigest(entry.shard.encode())


def teacher_name(address: str | Path, family: str) -> str:
    """What the teacher's folder is called; of a cache in an object store, its family."""
    recipe = Path(address) / RECIPE_FILE
    if not recipe.exists():
        return f"teacher ({family})"
    name = Path(read_fields(recipe, "a recipe")["teacher"]["model"]).name
    return name if "teacher" in name else f"teacher {name}"
