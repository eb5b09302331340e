"""The teacher on vLLM: passes become requests, and computed prefixes serve several of them.

Full attention: one request a pass, its noised tokens. Block diffusion: one request for each noised
block with answers, behind the clean tokens of the blocks before it; a record's clean prefix is
computed once for all blocks, views and passes. Imported only where vLLM may serve.

Axes: M answered position, T teacher position.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config.models import TeacherConfig
from pipeline.teacher.backend import RowBlock
from pipeline.teacher.checkpoint_head import read_head
from pipeline.teacher.device import batch_tokens, torch_device
from pipeline.teacher.families import Family, family_named
from pipeline.teacher.keep import Keep
from pipeline.teacher.vllm_check import Reference, check_engine
from pipeline.teacher.vllm_engine import Engine, RowRequest, why_not_served
from pipeline.teacher.vllm_plugin.wire import unpack, width
from storage_schemas.errors import TeacherError
from storage_schemas.views import TeacherPass

_LOG = logging.getLogger(__name__)
_BATCHES_A_CALL = 8  # so that the engine's last, smaller steps cost little
_NUMBERS_A_CALL = 2**26  # of kept float32, 256 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request, and which pass and teacher tokens its rows answer."""

    request: RowRequest
    pass_index: int
    position_M: NDArray[np.int64]
    record: int  # passes of one record have the same clean tokens,
    prefix: int  # and their requests begin with so many of them


class VllmBackend:
    """A native checkpoint on vLLM. `load` checks the real model before it answers anything."""

    def __init__(
        self, engine: Engine, config: TeacherConfig, *, block_size: int | None, family: Family
    ) -> None:
        self._engine = engine
        self._config = config
        self._block_size = block_size
        self._family = family
        self._head: nn.Linear | None = None

    @classmethod
    def load(cls, config: TeacherConfig, *, block_size: int | None) -> "VllmBackend":
        """The recipe's teacher, started and checked; TeacherError where it cannot serve.

        Transformers answers some rows first and is let go: both never need the memory at once.
        """
        reason = why_not_served(config)
        if reason is not None:
            raise TeacherError(f"vLLM cannot run teacher {config.model!r}: {reason}")
        reference = Reference.of(config, block_size=block_size)
        family = family_named(config.family)
        engine = Engine(config, block_size=block_size)
        backend = cls(engine, config, block_size=block_size, family=family)
        try:
            report = check_engine(backend, reference)
        except BaseException:
            backend.close()
            raise
        _LOG.info("teacher %s on vLLM in %s: %s", config.model, config.dtype, report)
        return backend

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._engine.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the head lies."""
        return torch_device(self._config.device)

    @property
    def head(self) -> nn.Linear:
        """The linear map from hidden states to logits, from the checkpoint's files."""
        if self._head is None:
            dtype = getattr(torch, self._config.dtype)
            self._head = read_head(self._config, dtype=dtype, device=self.device)
        return self._head

    @property
    def engine(self) -> Engine:
        """What computes the rows."""
        return self._engine

    @property
    def block_size(self) -> int | None:
        """Tokens of a diffusion block; None with full attention."""
        return self._block_size

    def close(self) -> None:
        """Ends the engine and its workers."""
        self._engine.close()

    def rows(self, passes: Sequence[TeacherPass], keep: Keep) -> Iterator[RowBlock]:
        """What is kept of all passes; in block diffusion a clean prefix is computed once."""
        self._engine.keep(keep)
        self._engine.forget_prefixes()  # equal calls compute the same, to the bit
        for group in self._groups(self._asked(passes), keep):
            self._engine.ask(self._prefixes(group))
            yield self._answered(group, keep)

    def rows_alone(self, passes: Sequence[TeacherPass], keep: Keep) -> Iterator[RowBlock]:
        """The same, with nothing else in the engine at a time, and nothing computed before."""
        self._engine.keep(keep)
        for one in self._asked(passes):
            self._engine.forget_prefixes()
            yield self._answered([one], keep)

    def _answered(self, group: Sequence[_Asked], keep: Keep) -> RowBlock:
        tables = self._engine.ask([one.request for one in group])
        counts = [len(one.position_M) for one in group]
        return RowBlock(
            pass_M=np.repeat(np.array([one.pass_index for one in group], np.int64), counts),
            position_M=np.concatenate([one.position_M for one in group]),
            kept=unpack(np.concatenate(tables), keep),
        )

    def _asked(self, passes: Sequence[TeacherPass]) -> list[_Asked]:
        """The passes' requests; those of one record stand together, to share its prefix."""
        records: dict[bytes, int] = {}
        asked: list[_Asked] = []
        for index, one in enumerate(passes):
            record = records.setdefault(one.clean_ids_T.tobytes(), len(records))
            asked += self._asked_of(index, record, one)
        return sorted(asked, key=lambda one: one.record)

    def _asked_of(self, index: int, record: int, one: TeacherPass) -> Iterator[_Asked]:
        position_M = np.flatnonzero(one.is_answered_T)
        if not len(position_M):
            return
        row_M = position_M - 1 if self._family.is_shifted else position_M
        assert row_M[0] >= 0, "nothing predicts the first token"
        size = self._block_size or len(one.noised_ids_T)
        block_M = row_M // size
        for block in np.unique(block_M):
            here_M = block_M == block
            start = int(block) * size
            yield _Asked(
                request=RowRequest(
                    ids=np.concatenate(
                        [one.clean_ids_T[:start], one.noised_ids_T[start : start + size]]
                    ),
                    positions=row_M[here_M].tolist(),
                    gold=one.clean_ids_T[position_M[here_M]].tolist(),
                ),
                pass_index=index,
                position_M=position_M[here_M],
                record=record,
                prefix=start,
            )

    def _groups(self, asked: Sequence[_Asked], keep: Keep) -> Iterator[list[_Asked]]:
        """Requests for one call: a few batches, whose prefixes fit the cache together."""
        most = _Load(
            tokens=_BATCHES_A_CALL * batch_tokens(self._config, self.device),
            numbers=_NUMBERS_A_CALL,
            # the other half is for the blocks that are computed
            prefix=self._engine.kv_tokens // 2,
        )
        columns = width(keep, hidden_size=self._engine.hidden_size)
        group: list[_Asked] = []
        load, held = _Load(), 0
        for one in asked:
            if group and group[-1].record != one.record:
                held = 0
            more = load.plus(one, columns=columns, held=held)
            if group and not more.fits(most):
                yield group
                group, held = [], 0
                more = _Load().plus(one, columns=columns, held=held)
            group.append(one)
            load, held = more, max(held, one.prefix)
        if group:
            yield group

    def _prefixes(self, group: Sequence[_Asked]) -> list[RowRequest]:
        """Each record's clean prefix once, as far as the group needs and the cache holds it."""
        longest: dict[int, NDArray[np.int32]] = {}
        for one in group:
            usable = one.prefix // self._engine.kv_block * self._engine.kv_block
            if usable > len(longest.get(one.record, ())):
                longest[one.record] = one.request.ids[:usable]
        return [RowRequest(ids=ids, positions=(), gold=()) for ids in longest.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """What some requests ask of the engine: tokens to compute, kept numbers, tokens of prefixes."""

    tokens: int = 0
    numbers: int = 0
    prefix: int = 0

    def plus(self, one: _Asked, *, columns: int, held: int) -> "_Load":
        """With one request more, of whose prefix so many tokens are held already."""
        return _Load(
            tokens=self.tokens + len(one.request.ids) - one.prefix,
            numbers=self.numbers + len(one.position_M) * columns,
            prefix=self.prefix + max(0, one.prefix - held),
        )

    def fits(self, most: "_Load") -> bool:
        """Whether it is no more than that, in any respect."""
        return (
            self.tokens <= most.tokens
            and self.numbers <= most.numbers
            and self.prefix <= most.prefix
        )
