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
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config.models import TeacherConfig
from pipeline.diffusion.leak import block_attention_faults, full_attention_faults
from pipeline.teacher.attention import mask_argument
from pipeline.teacher.backend import RowBlock
from pipeline.teacher.families import Family, family_named
from pipeline.teacher.families.native import NATIVE
from pipeline.teacher.keep import Keep, RowKeeper
from storage_schemas.errors import TeacherError
from storage_schemas.views import TeacherPass

_LOG = logging.getLogger(__name__)
_LOGITS_A_BLOCK = 2**25  # 128 MiB of float32 logits at once, whatever the vocabulary


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
    ) -> None:
        self._model = model.eval()
        self._family = family
        self._block_size = block_size
        self._batch_tokens = batch_tokens
        self._ready: RowKeeper | None = None
        self._check_attention()

    @classmethod
    def load(cls, config: TeacherConfig, *, block_size: int | None) -> "TransformersBackend":
        """The recipe's teacher, on its device."""
        options: dict[str, Any] = {
            "trust_remote_code": config.trust_remote_code,
            "dtype": getattr(torch, config.dtype),
            "attn_implementation": "sdpa",
        }
        if config.revision is not None:
            options["revision"] = config.revision
        try:
            model = cast("Any", AutoModelForCausalLM).from_pretrained(config.model, **options)
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"expected a teacher that transformers can load at {config.model!r}, got: {error}"
            ) from error
        device = torch_device(config.device)
        _LOG.info("teacher %s on %s in %s", config.model, device, config.dtype)
        return cls(
            model.to(device),
            block_size=block_size,
            batch_tokens=config.batch_tokens,
            family=family_named(config.family),
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
        longest = len(passes[waiting[-1]].clean_ids_T) * halves
        return waiting[-max(1, self._batch_tokens // longest) :][::-1]

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
        num_rows = max(1, _LOGITS_A_BLOCK // self.vocab_size)
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
        position_T = torch.arange(num_tokens, device=noised_ids_BT.device)
        if self._block_size is None:
            ids, copies = noised_ids_BT, 1
        else:
            ids, copies = torch.cat([clean_ids_BT, noised_ids_BT], 1), 2
        arguments = mask_argument(
            self._family,
            is_real_BT,
            self._block_size,
            implementation=cast("Any", self._model.config)._attn_implementation,
            dtype=self._model.dtype,
        )
        if copies == 2:
            arguments["position_ids"] = position_T.repeat(copies)[None].expand(len(ids), -1)
        return self._before_head(ids, arguments)[:, -num_tokens:]

    def _before_head(self, ids: Int[Tensor, "B N"], arguments: dict[str, Any]) -> Tensor:
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
        generator = torch.Generator().manual_seed(0)
        num_tokens = 3 * (self._block_size or 8)
        high = min(1000, self.vocab_size)
        ids_T = torch.randint(2, high, (num_tokens,), generator=generator).to(self.device)

        def forward(ids_BT: Tensor) -> Tensor:
            is_real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
            noised_BT = ids_BT if self._block_size is None else torch.ones_like(ids_BT)
            return self._hidden(ids_BT, noised_BT, is_real_BT)

        if self._block_size is None:
            faults = full_attention_faults(forward, ids_T)
        else:
            faults = block_attention_faults(forward, ids_T, self._block_size)
        if faults:
            regime = "full" if self._block_size is None else "block"
            raise TeacherError(
                f"the teacher does not attend as attention.type = {regime!r} asks: "
                f"{'; '.join(faults)}. Its architecture ({type(self._model).__name__}) ignores or "
                f"misreads the mask that it is given, so it cannot serve as a teacher this way"
            )


def torch_device(name: str) -> torch.device:
    """The named device; `auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _padded(rows: Sequence[NDArray[Any]]) -> Tensor:
    """Rows as one tensor, filled with zeros (False) on the right; ids become int64."""
    dtype = np.bool_ if rows[0].dtype == np.bool_ else np.int64
    padded = np.zeros((len(rows), max(len(row) for row in rows)), dtype)
    for row, filled in zip(rows, padded, strict=True):
        filled[: len(row)] = row
    return torch.from_numpy(padded)
