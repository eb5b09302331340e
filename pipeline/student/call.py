"""How everything asks the student: `model(work)` runs `work(model)` inside the model's own call.

What wraps a model hangs on its call: DDP's gradient exchange, FSDP2's gathering of weights,
accelerate's autocast. The loss needs body and head apart, and never the logits of a whole batch,
which is what transformers' forward makes. So the student's forward is the work that it is given.
"""

from collections.abc import Callable
from types import MethodType
from typing import TypeVar

from transformers import PreTrainedModel

_T = TypeVar("_T")


def open_forward(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose call runs the work that it is given."""
    model.forward = MethodType(_run, model)
    return model


def _run(model: PreTrainedModel, work: Callable[[PreTrainedModel], _T]) -> _T:
    return work(model)
