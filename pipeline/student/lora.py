"""Low-rank adapters in place of a student's full weights, through peft; the head stays as it is."""

import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from pipeline.config.train import LoraConfig
from storage_schemas.errors import RecipeError


def add_adapters(model: PreTrainedModel, config: LoraConfig) -> nn.Module:
    """peft's model around the student: its weights are frozen, and its adapters are trained.

    A target is the last part of the names of linear layers in the student's body.
    """
    try:
        import peft
    except ImportError as error:
        raise RecipeError(
            "expected peft to be installed for [train.lora], got no such package; run pip install "
            "'tidecache[lora]'"
        ) from error
    _check_targets(model, config.targets)
    adapters = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=cast("int", config.alpha),
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
    )
    with _old_names():
        return cast("nn.Module", peft.get_peft_model(model, adapters))


def merge_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The student with a folder's adapters added into its weights: a plain transformers model."""
    import peft

    with _old_names():
        adapted = peft.PeftModel.from_pretrained(model, str(folder))
    return cast("PreTrainedModel", cast("Any", adapted).merge_and_unload())


@contextmanager
def _old_names() -> Generator[None]:
    """peft asks a model for what transformers by now calls otherwise, and warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    """peft itself is content if one target is found."""
    head = cast("nn.Module", model.get_output_embeddings())
    layers = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    body = {
        name.rpartition(".")[2]
        for name, layer in layers
        if isinstance(layer, nn.Linear) and layer is not head
    }
    unknown = [target for target in targets if target not in body]
    if unknown:
        raise RecipeError(
            f"expected train.lora.targets among the linear layers of the student's body, "
            f"{', '.join(sorted(body))}; got {', '.join(unknown)}; the head is never adapted"
        )
