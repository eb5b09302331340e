"""The head and every loss on it, block by block: no logits of a whole batch ever exist.

Autograd would keep each block's logits, or a copy of the head's gradient for each, until backward.
Here a block's gradients are formed while its logits are there, and the head's is added in place, as
fused linear cross-entropy kernels do; but for any loss, since the block's loss is a function.

Axes: N masked position, R those of one block, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pipeline.objectives.precision import upcast
from pipeline.train.tensors import Block
from storage_schemas.errors import RecipeError

# Logits that are there at one time, in each of the dozen tensors that a loss makes. On a CPU 36 MiB
# of them: glibc returns what is larger than 32 MiB to the system at once, and would keep less for
# itself. On a GPU 256 MiB: every block reads and writes the head's whole gradient.
_CPU_LOGITS, _GPU_LOGITS = 9 * 2**20, 2**26

BlockLoss = Callable[[Tensor, Block], Tensor]
"""Logits [R, V] of a block in, its share of the loss, a scalar, out."""


def rows_per_block(vocab_size: int, device: torch.device) -> int:
    """How many positions' logits are made at one time."""
    logits = _CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS
    return max(16, logits // vocab_size)


def head_loss(
    head: nn.Module, hidden_NH: Float[Tensor, "N H"], blocks: Sequence[Block], loss_of: BlockLoss
) -> Float[Tensor, ""]:
    """The sum over blocks of `loss_of(logits, block)`, with gradients to hidden states and head.

    Equal, value and gradient, to the same sum over the head's logits. The logits are made in
    autocast's dtype, and the loss sees them in float32 or wider. Backward may run once.
    """
    if not isinstance(head, nn.Linear):
        raise RecipeError(
            f"expected a student whose head is one linear layer, got {type(head).__name__}: "
            "its logits cannot be made block by block"
        )
    weight_VH, bias_V = head.weight, cast("Tensor | None", head.bias)
    if not torch.is_grad_enabled():
        return _sum(hidden_NH, weight_VH, bias_V, blocks, loss_of, None)
    return cast("Any", _HeadLoss).apply(hidden_NH, weight_VH, bias_V, blocks, loss_of)


@dataclass(slots=True)
class _Gradients:
    """What has been added up so far; None where nobody wants it."""

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None

    def add(self, grad_RV: Tensor, rows_RH: Tensor, weight_VH: Tensor, block: Block) -> None:
        """One block's, from its logits' gradient in the dtype that the logits were made in."""
        if self.hidden_NH is not None:
            self.hidden_NH[block.positions] = grad_RV @ weight_VH
        if self.bias_V is not None:
            self.bias_V += grad_RV.sum(0)
        if self.weight_VH is None:
            return
        if self.weight_VH.dtype == grad_RV.dtype:
            self.weight_VH.addmm_(grad_RV.mT, rows_RH)
        else:  # autocast's product, added in the weight's own dtype
            self.weight_VH += grad_RV.mT @ rows_RH


class _HeadLoss(torch.autograd.Function):
    """Forward makes loss and gradients; backward hands the gradients on."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        blocks: Sequence[Block],
        loss_of: BlockLoss,
    ) -> Tensor:
        inputs = zip((hidden_NH, weight_VH, bias_V), ctx.needs_input_grad, strict=False)
        ctx.grads = _Gradients(
            *(
                torch.zeros_like(x) if x is not None and is_wanted else None
                for x, is_wanted in inputs
            )
        )
        return _sum(hidden_NH, weight_VH, bias_V, blocks, loss_of, ctx.grads)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        grads: _Gradients | None = ctx.grads
        assert grads is not None, "backward of the head's loss runs once"
        ctx.grads = None  # autograd takes the only copy over, and need not make its own
        made = (grads.hidden_NH, grads.weight_VH, grads.bias_V)
        return *(x if x is None else x.mul_(grad) for x in made), None, None


def _sum(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    blocks: Sequence[Block],
    loss_of: BlockLoss,
    grads: _Gradients | None,
) -> Float[Tensor, ""]:
    """The sum over blocks; their gradients are added where `grads` is given."""
    device = hidden_NH.device.type
    total = upcast(hidden_NH.new_zeros(()))
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with torch.autocast(device, enabled=False):
        weight_VH = weight_VH.to(dtype or weight_VH.dtype)
        bias_V = None if bias_V is None else bias_V.to(weight_VH.dtype)
        for block in blocks:
            rows_RH = hidden_NH[block.positions].to(weight_VH.dtype)
            logits_RV = upcast(functional.linear(rows_RH, weight_VH, bias_V))
            if grads is None:
                total += loss_of(logits_RV, block)
                continue
            value, grad_RV = _value_and_grad(logits_RV, block, loss_of)
            del logits_RV  # its memory is the next block's
            total += value
            grads.add(grad_RV.to(weight_VH.dtype), rows_RH, weight_VH, block)
            del grad_RV
    return total


@torch.enable_grad()
def _value_and_grad(logits_RV: Tensor, block: Block, loss_of: BlockLoss) -> tuple[Tensor, Tensor]:
    value = loss_of(logits_RV.requires_grad_(), block)
    (grad_RV,) = torch.autograd.grad(value, logits_RV)
    return value.detach(), grad_RV
