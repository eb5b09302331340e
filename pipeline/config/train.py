"""How the student is trained (method, section 7: the paper's values are the defaults)."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import StrictModel
from pipeline.config.models import Count, Device

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LoraConfig(StrictModel):
    """Low-rank adapters in place of the full weights, through peft; the head stays as it is.

    Each target module's output gets alpha / rank times that of its adapter.
    """

    rank: Count = 16
    alpha: Rate = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class TrainConfig(StrictModel):
    """Optimization by transformers.Trainer.

    An epoch is one pass over every stored view. `max_steps` ends the run earlier, and TIDAL's
    progress runs to where the run ends. precision bf16 keeps float32 weights and autocasts.

    A step reads `accumulation` micro-batches of `batch_size` views, however many processes share
    them. Micro-batches come in turn from `open_shards` shards, which processes and their loaders
    share too. loader_workers are processes that read ahead; 0 reads in the training process.

    `packing` puts several short records in one row. `length_buckets` makes micro-batches of views
    of like length: less padding, but a step's means are over its own tokens, so that those of short
    records weigh more. kernel chooses the attention: `auto` is flex on a GPU and SDPA on a CPU.
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
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    open_shards: Count = 4
    loader_workers: Annotated[int, Field(ge=0)] = 1
    packing: bool = False
    length_buckets: bool = False
    kernel: Literal["auto", "sdpa", "flex"] = "auto"
    gradient_checkpointing: bool = False
    lora: LoraConfig | None = None
