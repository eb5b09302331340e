"""How the student is trained (method, section 7: the paper's values are the defaults)."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import StrictModel
from pipeline.config.models import Count, Device

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TrainConfig(StrictModel):
    """Optimization by transformers.Trainer.

    An epoch is one pass over every stored view. `max_steps` ends the run earlier, and TIDAL's
    progress runs to where the run ends. precision bf16 keeps float32 weights and autocasts.
    """

    output: Annotated[str, Field(min_length=1)]
    epochs: Rate = 10.0
    max_steps: Count | None = None
    batch_size: Count = 8
    accumulation: Count = 1
    learning_rate: Rate = 5e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_grad_norm: Rate = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    device: Device = "auto"
    seed: int = 0
    log_steps: Count = 10
    save_steps: Count = 500
    keep_checkpoints: Count = 2
    tensorboard: bool = True
