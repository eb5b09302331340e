"""FSDP2 through accelerate: each process holds a share of weights, gradients and optimizer states.

accelerate is told by its own environment variables, as `accelerate launch` tells it, which every
release of it and of transformers reads alike.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim import Optimizer

from pipeline.config.recipe import Recipe
from pipeline.train.state_file import read_state, write_state
from storage_schemas.errors import RecipeError

_USE = "ACCELERATE_USE_FSDP"
_FSDP2 = {
    _USE: "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",  # the layers that the model itself names
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",  # any number of processes can go on from it
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
_CHECKPOINT_FILE = "fsdp_weights.safetensors"
Sharding = Literal["ddp", "fsdp2"]


def kind_of_sharding(recipe: Recipe) -> Sharding:
    """Without [launch], a process that torchrun started copies the student."""
    return "ddp" if recipe.launch is None else recipe.launch.sharding


@contextmanager
def sharding(kind: Sharding) -> Generator[None]:
    """Trainers that are made while the context lasts share the weights out so."""
    before = {name: os.environ.pop(name, None) for name in _FSDP2}
    if kind == "fsdp2":
        os.environ |= _FSDP2
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def settle_sharding(accelerator: Accelerator) -> None:
    """To be called when an accelerator is made: FSDP2 on CPUs too, and in float32 between layers.

    accelerate takes FSDP for GPUs alone, though it runs on CPUs. For bfloat16 it would also gather
    weights and add gradients in that; here autocast alone rounds, as in a run that shares nothing.
    """
    if os.environ.get(_USE) != "true":
        return
    state = cast("Any", accelerator.state)
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
        cast(
            "Any", PartialState()
        ).distributed_type = DistributedType.FSDP  # of which that is a copy
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def save_weights(model: nn.Module, checkpoint: Path, *, is_first: bool) -> None:
    """Writes the trained weights, gathered from all processes, each of which calls it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state = get_model_state_dict(model, options=options)
    if is_first:
        write_state(checkpoint / _CHECKPOINT_FILE, state)


def load_weights(model: nn.Module, checkpoint: Path, *, is_first: bool) -> None:
    """Gives every process its share of the weights; the first one reads them."""
    state: dict[str, Any] = read_state(checkpoint / _CHECKPOINT_FILE) if is_first else {}
    set_model_state_dict(model, state, options=_scattered(strict=False))


def gather_optimizer(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's whole state, on the first process; all call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, Any]", get_optimizer_state_dict(model, optimizer, options=options))


def scatter_optimizer(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Gives every process its share of the state that the first one has; the others have {}."""
    set_optimizer_state_dict(model, optimizer, state, options=_scattered(strict=True))


def _scattered(*, strict: bool) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)


def check_sharding(checkpoint: Path, kind: Sharding) -> None:
    """Refuses a checkpoint saved the other way, whose optimizer states are laid out otherwise."""
    saved = "fsdp2" if (checkpoint / _CHECKPOINT_FILE).exists() else "ddp"
    if saved != kind:
        raise RecipeError(
            f"{checkpoint} was saved with sharding {saved!r}, which a run with {kind!r} cannot go "
            f"on from; set launch.sharding = {saved!r} (the number of processes is free)"
        )
