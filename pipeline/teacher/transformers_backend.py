"""The teacher on plain transformers: batches by length, the head at answered positions only.

Axes: B pass, T teacher position, M answered position (flattened), H hidden size, V vocabulary.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.config.models import TeacherConfig
from pipeline.diffusion.leak import (
    block_attention_faults,
    full_attention_faults,
    padding_faults,
)
from pipeline.teacher.attention import attention_arguments
from pipeline.teacher.backend import RowBlock
from pipeline.teacher.checkpoint import load_checkpoint
from pipeline.teacher.device import batch_tokens, torch_device
from pipeline.teacher.families import Family, family_named
from pipeline.teacher.families.native import NATIVE
from pipeline.teacher.keep import Keep, RowKeeper, rows_at_once
from pipeline.teacher.kernels import PACKED, Kernel, choose_kernel, implementation_of
from storage_schemas.errors import TeacherError
from storage_schemas.views import TeacherPass

_LOG = logging.getLogger(__name__)
# Largest difference of equal logits, as a share of the largest: other shapes reorder sums.
_SAME_IN_FLOAT32, _SAME_IN_16_BITS = 1e-4, 2e-2


class TransformersBackend:
    """A causal-LM checkpoint run bidirectionally: full attention, or block-wise over [x_0, x_t].

    Of the model it needs `forward` and the head alone, so that remote code serves as it is. A batch
    that the GPU has no memory for is halved, and so are all that follow.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        block_size: int | None,
        batch_tokens: int,
        family: Family = NATIVE,
        kernel: Kernel = "sdpa",
    ) -> None:
        self._model = model.eval()
        self._kernel: Kernel = kernel
        self._family = family
        self._block_size = block_size
        self._batch_tokens = batch_tokens
        self._ready: RowKeeper | None = None
        self._check_attention()
        self._check_head()
        self._is_padding_hidden = self._hides_padding()

    @classmethod
    def load(cls, config: TeacherConfig, *, block_size: int | None) -> "TransformersBackend":
        """The recipe's teacher, on its device."""
        family, device = family_named(config.family), torch_device(config.device)
        kernel, why = choose_kernel(
            config.kernel,
            family=family,
            is_block=block_size is not None,
            device=device,
            dtype=getattr(torch, config.dtype),
        )
        model = load_checkpoint(config, implementation=implementation_of(kernel))
        _LOG.info("teacher %s on %s in %s", config.model, device, config.dtype)
        _LOG.info("attention kernel %s: %s", kernel, why)
        return cls(
            cast("Any", model).to(device),
            block_size=block_size,
            batch_tokens=batch_tokens(config, device),
            family=family,
            kernel=kernel,
        )

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the head lies."""
        return self._model.device

    @property
    def head(self) -> nn.Linear:
        """The linear map from hidden states to logits."""
        return cast("nn.Linear", self._model.get_output_embeddings())

    def close(self) -> None:
        """Nothing of it outlives this process."""

    def rows(self, passes: Sequence[TeacherPass], keep: Keep) -> Iterator[RowBlock]:
        """What is kept of all passes, batched by length so that little is spent on padding."""
        keeper = self._keeper(keep)
        waiting = sorted(
            (i for i, one in enumerate(passes) if one.is_answered_T.any()),
            key=lambda i: len(passes[i].clean_ids_T),
        )
        while waiting:
            group = self._next_group(waiting, passes)
            try:
                blocks = self._blocks(group, [passes[i] for i in group], keeper)
            except torch.OutOfMemoryError as error:
                self._halve(len(group), error)
                continue
            del waiting[-len(group) :]
            yield from blocks

    def _keeper(self, keep: Keep) -> RowKeeper:
        """Made ready once: a basis may be hundreds of megabytes."""
        if self._ready is None or self._ready.keep != keep:
            self._ready = RowKeeper.of(keep, self.device)
        return self._ready

    def _next_group(self, waiting: list[int], passes: Sequence[TeacherPass]) -> list[int]:
        """The longest of those that wait, as many as a batch holds."""
        halves = 1 if self._block_size is None else 2
        longest = len(passes[waiting[-1]].clean_ids_T)
        if self._kernel in PACKED:  # without padding, more of the short ones fit
            tokens = np.cumsum([len(passes[i].clean_ids_T) for i in reversed(waiting)])
            count = int(np.searchsorted(tokens, self._batch_tokens, side="right"))
        else:
            count = self._batch_tokens // (longest * halves)
        group = waiting[-max(1, count) :][::-1]
        if self._is_padding_hidden:
            return group
        return [i for i in group if len(passes[i].clean_ids_T) == longest]

    def _halve(self, num_passes: int, error: torch.OutOfMemoryError) -> None:
        if num_passes == 1:
            raise TeacherError(
                f"expected memory for one pass, and {self.device} has none left: {error}; choose a "
                f"smaller teacher.length or dtype, or a device with more memory"
            ) from error
        self._batch_tokens //= 2
        _LOG.warning(
            "%s is out of memory with %d passes at once; going on with teacher.batch_tokens = %d",
            self.device,
            num_passes,
            self._batch_tokens,
        )

    def _blocks(
        self, group: list[int], passes: list[TeacherPass], keeper: RowKeeper
    ) -> list[RowBlock]:
        """One batch: the body for all its tokens, the head for a block of rows at a time."""
        is_answered_BT = _padded([one.is_answered_T for one in passes])
        hidden_MH = self._answering(
            _padded([one.clean_ids_T for one in passes]),
            _padded([one.noised_ids_T for one in passes]),
            _padded([np.ones(len(one.clean_ids_T), bool) for one in passes]),
            is_answered_BT,
        )
        gold_M = _padded([one.clean_ids_T for one in passes])[is_answered_BT].to(self.device)
        b_M, position_M = (index.numpy() for index in is_answered_BT.nonzero(as_tuple=True))
        pass_M = np.asarray(group)[b_M]
        num_rows = rows_at_once(self.vocab_size)
        parts = [slice(at, at + num_rows) for at in range(0, len(hidden_MH), num_rows)]
        return [
            RowBlock(
                pass_M=pass_M[rows],
                position_M=position_M[rows],
                kept=keeper(hidden_MH[rows], self._logits(hidden_MH[rows]), gold_M[rows]),
            )
            for rows in parts
        ]

    @torch.inference_mode()
    def _logits(self, hidden_MH: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        return self.head(hidden_MH).float()

    def _answering(
        self,
        clean_ids_BT: Int[Tensor, "B T"],
        noised_ids_BT: Int[Tensor, "B T"],
        is_real_BT: Bool[Tensor, "B T"],
        is_answered_BT: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "M H"]:
        """The hidden states that predict the answered tokens."""
        if self._family.is_shifted:
            assert not is_answered_BT[:, 0].any(), "nothing predicts the first token"
            is_answered_BT = is_answered_BT.roll(-1, dims=1)
        here = (tensor.to(self.device) for tensor in (clean_ids_BT, noised_ids_BT, is_real_BT))
        return self._hidden(*here)[is_answered_BT.to(self.device)]

    @torch.inference_mode()
    def _hidden(
        self,
        clean_ids_BT: Int[Tensor, "B T"],
        noised_ids_BT: Int[Tensor, "B T"],
        is_real_BT: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T H"]:
        """What the head is given at the noised tokens."""
        num_tokens = noised_ids_BT.shape[1]
        ids, arguments = self._inputs(clean_ids_BT, noised_ids_BT, is_real_BT)
        hidden = self._before_head(ids, arguments)
        if self._kernel not in PACKED:
            return hidden[:, -num_tokens:]
        hidden_BTH = hidden.new_zeros(*is_real_BT.shape, hidden.shape[-1])
        hidden_BTH[is_real_BT] = hidden[0]
        return hidden_BTH

    def _inputs(
        self,
        clean_ids_BT: Int[Tensor, "B T"],
        noised_ids_BT: Int[Tensor, "B T"],
        is_real_BT: Bool[Tensor, "B T"],
    ) -> tuple[Int[Tensor, "rows tokens"], dict[str, Any]]:
        """The ids of a forward call, the noised tokens last, and what goes with them."""
        num_tokens = noised_ids_BT.shape[1]
        arguments = attention_arguments(
            self._family,
            is_real_BT,
            self._block_size,
            kernel=self._kernel,
            dtype=self._model.dtype,
        )
        position_T = torch.arange(num_tokens, device=noised_ids_BT.device)
        if self._kernel in PACKED:
            arguments["position_ids"] = position_T.expand(is_real_BT.shape)[is_real_BT][None]
            return noised_ids_BT[is_real_BT][None], arguments
        if self._block_size is None:
            return noised_ids_BT, arguments
        ids = torch.cat([clean_ids_BT, noised_ids_BT], 1)
        arguments["position_ids"] = position_T.repeat(2)[None].expand(len(ids), -1)
        return ids, arguments

    def _before_head(self, ids: Int[Tensor, "rows tokens"], arguments: dict[str, Any]) -> Tensor:
        """Runs the model; its head is given nothing to do, and what it would have read is returned.

        Every architecture has a head and a `forward`; where the body is, and what it returns, each
        settles for itself.
        """
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            caught.append(inputs[0])
            return (inputs[0][:, :0], *inputs[1:])

        handle = self.head.register_forward_pre_hook(catch)
        try:
            cast("Any", self._model)(input_ids=ids, use_cache=False, **arguments)
        finally:
            handle.remove()
        if len(caught) != 1:
            raise TeacherError(
                f"expected {type(self._model).__name__} to call its head once, with its last "
                f"hidden states, got {len(caught)} calls; it cannot serve as a teacher this way"
            )
        return caught[0]

    def _check_attention(self) -> None:
        """Raise unless the loaded model attends as the recipe says."""

        def forward(ids_BT: Tensor) -> Tensor:
            noised_BT = ids_BT if self._block_size is None else torch.ones_like(ids_BT)
            return self._hidden(ids_BT, noised_BT, torch.ones_like(ids_BT, dtype=torch.bool))

        if self._block_size is None:
            faults = full_attention_faults(forward, self._probe())
        else:
            faults = block_attention_faults(forward, self._probe(), self._block_size)
        if faults:
            raise self._misread_mask(faults)

    @torch.inference_mode()
    def _check_head(self) -> None:
        """Raise unless the head's rows are the model's own logits.

        An architecture that scales or caps its logits after the head would be cached wrong.
        """
        ids_1T = self._probe()[None]
        is_real_1T = torch.ones_like(ids_1T, dtype=torch.bool)
        rows_TV = self._logits(self._hidden(ids_1T, ids_1T, is_real_1T)[0])
        ids, arguments = self._inputs(ids_1T, ids_1T, is_real_1T)
        output = cast("Any", self._model)(input_ids=ids, use_cache=False, **arguments)
        own_TV = output.logits[0, -len(rows_TV) :].float()
        reach, own_reach = rows_TV.abs().max().item(), own_TV.abs().max().item()
        error = (own_TV - rows_TV).abs().max().item()
        is_exact = self._model.dtype == torch.float32
        allowed = (_SAME_IN_FLOAT32 if is_exact else _SAME_IN_16_BITS) * reach
        if not error <= allowed:  # this way round NaN is a fault
            raise TeacherError(
                f"expected the logits of {type(self._model).__name__} to be what its head makes of "
                f"the last hidden states, within {allowed:.2g}, got a difference of {error:.3g} "
                f"(the largest is {own_reach:.3g}, the head's {reach:.3g}): it scales or caps them "
                f"afterwards, so it cannot serve as a teacher"
            )

    def _hides_padding(self) -> bool:
        """Whether what stands in padding moves no row.

        A model that is bidirectional by itself and leaves its mask unread can still answer passes
        of one length together; one that should be block-wise cannot.
        """
        ids_T = self._probe()
        num_real = len(ids_T) // 3 * 2
        is_real_1T = (torch.arange(len(ids_T), device=ids_T.device) < num_real)[None]

        def forward(ids_BT: Tensor) -> Tensor:
            return self._hidden(ids_BT, ids_BT, is_real_1T)

        faults = padding_faults(forward, ids_T, num_real)
        if faults and self._block_size is not None:
            raise self._misread_mask(faults)
        if faults:
            _LOG.warning(
                "%s leaves its mask unread (%s): only passes of one length go together",
                type(self._model).__name__,
                "; ".join(faults),
            )
        return not faults

    def _probe(self) -> Int[Tensor, " T"]:
        """Three blocks of arbitrary tokens."""
        generator = torch.Generator().manual_seed(0)
        num_tokens = 3 * (self._block_size or 8)
        high = min(1000, self.vocab_size)
        return torch.randint(2, high, (num_tokens,), generator=generator).to(self.device)

    def _misread_mask(self, faults: list[str]) -> TeacherError:
        regime = "full" if self._block_size is None else "block"
        return TeacherError(
            f"the teacher does not attend as attention.type = {regime!r} asks: "
            f"{'; '.join(faults)}. Its architecture ({type(self._model).__name__}) ignores or "
            f"misreads the mask that it is given, so it cannot serve as a teacher this way"
        )


def _padded(rows: Sequence[NDArray[Any]]) -> Tensor:
    """Rows as one tensor, filled with zeros (False) on the right; ids become int64."""
    dtype = np.bool_ if rows[0].dtype == np.bool_ else np.int64
    padded = np.zeros((len(rows), max(len(row) for row in rows)), dtype)
    for row, filled in zip(rows, padded, strict=True):
        filled[: len(row)] = row
    return torch.from_numpy(padded)
