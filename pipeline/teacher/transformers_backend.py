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
from pipeline.diffusion.block_mask import as_attention_mask, block_diffusion_mask, hide_padding
from pipeline.diffusion.leak import block_attention_faults, full_attention_faults
from pipeline.teacher.backend import RowBlock
from storage_schemas.errors import TeacherError
from storage_schemas.views import TeacherPass

_LOG = logging.getLogger(__name__)
_LOGITS_A_BLOCK = 2**25  # 128 MiB of float32 logits at once, whatever the vocabulary


class TransformersBackend:
    """A causal-LM checkpoint run bidirectionally: full attention, or block-wise over [x_0, x_t]."""

    def __init__(
        self, model: PreTrainedModel, *, block_size: int | None, batch_tokens: int
    ) -> None:
        self._model = model.eval()
        self._block_size = block_size
        self._batch_tokens = batch_tokens
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
        return cls(model.to(device), block_size=block_size, batch_tokens=config.batch_tokens)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the rows come to lie."""
        return self._model.device

    @property
    def head(self) -> nn.Linear:
        """The linear map from hidden states to logits."""
        return cast("nn.Linear", self._model.get_output_embeddings())

    def rows(self, passes: Sequence[TeacherPass]) -> Iterator[RowBlock]:
        """The answers to all passes, batched by length so that little is spent on padding."""
        answering = [i for i, one in enumerate(passes) if one.is_answered_T.any()]
        for group in self._groups(answering, passes):
            yield from self._group_rows(group, [passes[i] for i in group])

    def _groups(self, indices: list[int], passes: Sequence[TeacherPass]) -> Iterator[list[int]]:
        halves = 1 if self._block_size is None else 2
        group: list[int] = []
        for i in sorted(indices, key=lambda i: len(passes[i].clean_ids_T), reverse=True):
            longest = len(passes[group[0] if group else i].clean_ids_T)
            if group and (len(group) + 1) * longest * halves > self._batch_tokens:
                yield group
                group = []
            group.append(i)
        if group:
            yield group

    def _group_rows(self, group: list[int], passes: list[TeacherPass]) -> Iterator[RowBlock]:
        device = self._model.device
        hidden_BTH = self._hidden(
            _padded([one.clean_ids_T for one in passes]).to(device),
            _padded([one.noised_ids_T for one in passes]).to(device),
            _padded([np.ones(len(one.clean_ids_T), bool) for one in passes]).to(device),
        )
        is_answered_BT = _padded([one.is_answered_T for one in passes])
        hidden_MH = hidden_BTH[is_answered_BT.to(device)]
        b_M, position_M = (index.numpy() for index in is_answered_BT.nonzero(as_tuple=True))
        pass_M = np.asarray(group)[b_M]
        num_rows = max(1, _LOGITS_A_BLOCK // self.vocab_size)
        for start in range(0, len(hidden_MH), num_rows):
            rows = slice(start, start + num_rows)
            yield RowBlock(
                pass_M=pass_M[rows],
                position_M=position_M[rows],
                hidden_MH=hidden_MH[rows],
                logits_MV=self._logits(hidden_MH[rows]),
            )

    @torch.inference_mode()  # here and not on `rows`: a decorator may miss that it is a generator
    def _logits(self, hidden_MH: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        return self.head(hidden_MH).float()

    @torch.inference_mode()
    def _hidden(
        self,
        clean_ids_BT: Int[Tensor, "B T"],
        noised_ids_BT: Int[Tensor, "B T"],
        is_real_BT: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T H"]:
        """Final hidden states of the noised tokens."""
        num_tokens = noised_ids_BT.shape[1]
        position_T = torch.arange(num_tokens, device=noised_ids_BT.device)
        if self._block_size is None:
            ids, copies = noised_ids_BT, 1
            visible = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
        else:
            ids, copies = torch.cat([clean_ids_BT, noised_ids_BT], 1), 2
            visible = block_diffusion_mask(num_tokens, self._block_size, clean_first=True)
        body = cast("Any", self._model.get_decoder())
        output = body(
            input_ids=ids,
            attention_mask=as_attention_mask(
                hide_padding(visible.to(ids.device), is_real_BT.repeat(1, copies)),
                implementation=cast("Any", self._model.config)._attn_implementation,
                dtype=self._model.dtype,
            ),
            position_ids=position_T.repeat(copies)[None].expand(len(ids), -1),
            use_cache=False,
        )
        return output.last_hidden_state[:, -num_tokens:]

    def _check_attention(self) -> None:
        """Raise unless the loaded model attends as the recipe says."""
        generator = torch.Generator().manual_seed(0)
        num_tokens = 3 * (self._block_size or 8)
        high = min(1000, self.vocab_size)
        ids_T = torch.randint(2, high, (num_tokens,), generator=generator).to(self._model.device)

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
