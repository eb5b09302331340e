"""How everything asks the student: `model(work)` runs `work(model)` inside the model's own call.

What wraps a model hangs on its call: DDP's gradient exchange, FSDP2's gathering of weights,
accelerate's autocast. The loss needs body and head apart, and never the logits of a whole batch,
which is what transformers' forward makes. So the student's forward is the work that it is given.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

_T = TypeVar("_T")


def open_forward(model: nn.Module) -> nn.Module:
    """The same model, whose call runs the work that it is given, on the student.

    Those are one, except where peft has put the student into a model of its own.
    """
    inner = model if isinstance(model, PreTrainedModel) else cast("Any", model).get_base_model()

    def run(self: nn.Module, work: Callable[[PreTrainedModel], _T]) -> _T:
        del self
        return work(inner)

    model.forward = MethodType(run, model)
    return model
