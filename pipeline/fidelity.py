"""Fidelity: stored views scored again by the live teacher, and compared (method, section 6).

Axes: M answered teacher position of some views, C answered chunk, V vocabulary.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.ledger import replace_manifest
from pipeline.cache.reader import CacheReader
from pipeline.config.recipe import Recipe, parse_recipe
from pipeline.diffusion.rng import uniforms_for
from pipeline.stream.collate import View, collate
from pipeline.targets.measure import GradientError, kl_at, tidal_gradient_error
from pipeline.teacher.answer import KeepDense, all_finite, answer_views
from pipeline.teacher.backend import TeacherBackend
from pipeline.teacher.calibrate import blind_pass, hidden_in_order
from pipeline.teacher.examples import load_teacher_tokenizer
from pipeline.teacher.fit import check_family
from pipeline.teacher.identity import teacher_identity
from pipeline.teacher.keep import KeepChunks
from pipeline.teacher.load import load_backend
from pipeline.train.expand import Expand, expander
from pipeline.train.tensors import rows_on, teacher_rows
from storage_schemas.errors import (
    CacheCorruptError,
    CacheIdentityError,
    CacheMissingError,
    RecipeError,
)
from storage_schemas.identity import differences
from storage_schemas.manifest import RECIPE_FILE, Fidelity, Quantiles
from storage_schemas.targets import DenseTargets, Targets

_DENSE_NUMBERS = 2**25  # logits of a group of views, 128 MiB; a view more may be in it
_VIEWS_A_GROUP = 64
_BLOCK_ROWS = 128


def measure_fidelity(
    address: str | Path, *, num_views: int, overrides: Sequence[str] = ()
) -> Fidelity:
    """How `num_views` stored views, spread over the cache, differ from what the teacher says now.

    The teacher is that of the cache's recipe.json, with `overrides` such as teacher.device=cpu;
    one of other weights, attention or dtype is refused. Equal calls choose equal views.
    """
    if num_views < 1:
        raise RecipeError(f"expected a view or more to score again, got {num_views}")
    reader = CacheReader.open(address)
    recipe = _recipe(reader, overrides)
    _check_teacher(reader, recipe)
    chosen = _choose(reader, num_views)
    if not chosen:
        raise CacheMissingError(f"{address}: expected views to score again, got none in the cache")
    tokenizer = load_teacher_tokenizer(recipe.teacher)
    backend = load_backend(recipe.teacher, block_size=recipe.teacher_block_size)
    with closing(backend):
        comparison = _Comparison(reader, backend, mask_id=tokenizer.mask_id)
        for views in _groups(_read(reader, chosen, comparison), comparison.row_width):
            comparison.add(views)
    return comparison.result()


def keep_fidelity(address: str | Path, fidelity: Fidelity) -> None:
    """Puts a measurement into the manifest, in the place of an earlier one."""
    reader = CacheReader.open(address)
    new = reader.manifest.model_copy(update={"fidelity": fidelity})
    replace_manifest(reader.store, reader.manifest, new)


def _recipe(reader: CacheReader, overrides: Sequence[str]) -> Recipe:
    where = f"{reader.address}/{RECIPE_FILE}"
    try:
        fields: Any = json.loads(reader.store.read(RECIPE_FILE))
    except FileNotFoundError as error:
        raise CacheMissingError(
            f"{where}: expected the recipe that made this cache, got no such file; run "
            f"'tidecache teacher-cache' with that recipe: it writes the file anew"
        ) from error
    except ValueError as error:
        raise CacheCorruptError(
            f"{where}: expected JSON, got: {error}; run 'tidecache teacher-cache' with the recipe "
            f"that made this cache: it writes the file anew"
        ) from error
    if not isinstance(fields, dict):
        raise CacheCorruptError(f"{where}: expected a recipe, got {type(fields).__name__}")
    return parse_recipe(
        _without_permissions(cast("dict[str, Any]", fields)), where=where, overrides=overrides
    )


def _without_permissions(fields: dict[str, Any]) -> dict[str, Any]:
    """What a cache brings allows no code to run: that is for whoever looks at it to say."""
    for side in ("student", "teacher"):
        if isinstance(fields.get(side), dict):
            fields[side].pop("trust_remote_code", None)
    return fields


def _check_teacher(reader: CacheReader, recipe: Recipe) -> None:
    """The same weights, wherever they lie by now, read in the same way."""
    check_family(recipe.teacher)
    cached = reader.identity.teacher
    named = teacher_identity(recipe).model_copy(update={"revision": cached.revision})
    lines = [f"teacher.{line}" for line in differences(cached, named)]
    tokenizer = load_teacher_tokenizer(recipe.teacher).fingerprint
    if tokenizer != reader.identity.teacher_tokenizer:
        lines.append("the teacher's tokenizer is another one")
    if lines:
        raise CacheIdentityError(
            "\n  ".join(
                [
                    f"{reader.address}: expected the teacher that the cache was made with, but",
                    *lines,
                ]
            )
            + "\nname that teacher with --set teacher.model=..."
        )


def _choose(reader: CacheReader, num_views: int) -> dict[int, list[int]]:
    """Rows of views by shard: one of each of `num_views` equal stretches of the cache."""
    counts = [entry.counts.num_views for entry in reader.entries]
    total = sum(counts)
    num_views = min(num_views, total)
    uniforms = uniforms_for(0, reader.manifest.digest, 0, "fidelity", num_views)
    edges = [i * total // num_views for i in range(num_views + 1)] if num_views else [0]
    starts = np.cumsum([0, *counts])
    chosen: dict[int, list[int]] = {}
    for uniform, start, stop in zip(uniforms.tolist(), edges[:-1], edges[1:], strict=True):
        view = start + int(uniform * (stop - start))
        shard = int(np.searchsorted(starts, view, side="right")) - 1
        chosen.setdefault(shard, []).append(view - int(starts[shard]))
    return chosen


def _read(
    reader: CacheReader, chosen: dict[int, list[int]], comparison: "_Comparison"
) -> Iterator[View]:
    coder = None if comparison.basis is None else comparison.basis.coder
    for shard, rows in chosen.items():
        content = reader.read_shard(reader.entries[shard], coder)
        for row in rows:
            stored = content.views[row]
            yield View(
                pair=content.examples[stored.example],
                corruption=stored.corruption,
                targets=stored.targets,
            )


def _groups(views: Iterator[View], row_width: int) -> Iterator[list[View]]:
    """Views whose dense rows fit into memory together."""
    group: list[View] = []
    numbers = 0
    for view in views:
        group.append(view)
        numbers += int(view.corruption.is_masked_T.sum()) * row_width
        if numbers >= _DENSE_NUMBERS or len(group) == _VIEWS_A_GROUP:
            yield group
            group, numbers = [], 0
    if group:
        yield group


@dataclass(slots=True)
class _Measured:
    """Values over all views so far."""

    num_views: int = 0
    num_positions: int = 0
    chunk_error: list[NDArray[np.float64]] = field(default_factory=list[NDArray[np.float64]])
    kl: dict[float, list[Tensor]] = field(default_factory=dict[float, list[Tensor]])
    grad: list[GradientError] = field(default_factory=list[GradientError])


class _Comparison:
    """A live teacher beside a cache."""

    def __init__(self, reader: CacheReader, backend: TeacherBackend, *, mask_id: int) -> None:
        identity = reader.identity
        self.basis = reader.read_basis()
        self._kept = identity.kept
        self._noise = identity.noise
        self._backend = backend
        self._mask_id = mask_id
        # Across two tokenizers no student reads the distributions: they are to be looked at.
        is_read = identity.pipeline == "shared_tokenizer" and identity.kept.has_distributions
        self._expand: Expand | None = None
        if is_read:
            self._expand = expander(identity.kept, self.basis, backend.device)
        self._measured = _Measured(kl={t: [] for t in identity.kept.temperatures if is_read})

    @property
    def row_width(self) -> int:
        """Logits that are held of a position."""
        return self._kept.vocab_size if self._expand is not None else 0

    @torch.inference_mode()
    def add(self, views: Sequence[View]) -> None:
        """Scores some views again."""
        keep = KeepChunks() if self._expand is None else KeepDense(vocab_size=self.row_width)
        asked = [(view.pair, view.corruption) for view in views]
        answers = answer_views(
            self._backend,
            asked,
            mask_id=self._mask_id,
            seed=self._noise.seed,
            demo_ratio=self._noise.demo_ratio,
            keep=keep,
        )
        live = all_finite(asked, answers)
        measured = self._measured
        measured.num_views += len(views)
        measured.num_positions += sum(int(view.corruption.is_masked_T.sum()) for view in views)
        for view, now in zip(views, live, strict=True):
            now_C, stored_C = (one.logp_C.astype(np.float64) for one in (now, view.targets))
            measured.chunk_error.append(np.abs(now_C - stored_C))
        if self._expand is not None:
            self._add_rows(views, live, self._expand)

    def _add_rows(self, views: Sequence[View], live: Sequence[Targets], expand: Expand) -> None:
        batch = collate(views, has_tokens=True)
        blind_MH = hidden_in_order(
            self._backend,
            [blind_pass(view.pair, view.corruption.is_masked_T, self._mask_id) for view in views],
        )
        rows = [now.tokens for now in live]
        true_MV = np.concatenate([one.logits_MV for one in rows if isinstance(one, DenseTargets)])
        highest = max(self._kept.temperatures)
        for temperature, kl in self._measured.kl.items():
            stored = rows_on(teacher_rows(batch, temperature), self._backend.device)
            stored_MV = expand(stored, temperature)
            for at in range(0, len(true_MV), _BLOCK_ROWS):
                block = slice(at, at + _BLOCK_ROWS)
                true_NV = torch.from_numpy(true_MV[block]).to(stored_MV.device)
                kl.append(kl_at(true_NV, stored_MV[block], temperature).cpu())
                if temperature == highest:
                    error = tidal_gradient_error(
                        true_NV,
                        stored_MV[block],
                        self._logits(blind_MH[block]),
                        temperature=temperature,
                    )
                    self._measured.grad.append(
                        GradientError(error.gradient_M.cpu(), error.error_M.cpu())
                    )

    def _logits(self, hidden_MH: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        head = self._backend.head
        return head(hidden_MH.to(head.weight.dtype))[:, : self.row_width].float()

    def result(self) -> Fidelity:
        """The quantiles of everything."""
        measured = self._measured
        grad = None
        if measured.grad:
            grad = _quantiles(GradientError.joined(measured.grad).relative().double().numpy())
        return Fidelity(
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            views=measured.num_views,
            positions=measured.num_positions,
            chunk_logp_error=_quantiles(np.concatenate(measured.chunk_error)),
            kl={
                str(t): _quantiles(torch.cat(parts).double().numpy())
                for t, parts in measured.kl.items()
                if parts
            },
            grad_error=grad,
        )


def _quantiles(values: NDArray[np.float64]) -> Quantiles:
    """Of no values: zeros, as nothing differs."""
    if not len(values):
        return Quantiles(mean=0.0, p50=0.0, p95=0.0, max=0.0)
    p50, p95, highest = np.quantile(values, [0.5, 0.95, 1.0]).tolist()
    return Quantiles(mean=float(values.mean()), p50=p50, p95=p95, max=highest)
