"""Whose code a model's checkpoint may run, and which of its files may be read.

Remote code is code of others: it runs only where a recipe asks for it, at one commit or from a
folder whose code is part of the cache's identity. Weights come from safetensors alone: a pickle
runs what its maker wrote into it.
"""

import json
import re
from pathlib import Path
from typing import Any, cast

from transformers import PretrainedConfig
from transformers.models.auto import tokenization_auto
from transformers.utils import peft_utils

from pipeline.config.models import ModelSource
from storage_schemas.errors import CheckpointError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_INDEX = "model.safetensors.index.json"


def own_classes(fields: dict[str, Any]) -> dict[str, str]:
    """The classes that a checkpoint brings code for, by the name of transformers' auto class.

    A tokenizer's may be one of two, or none.
    """
    named = cast("dict[str, Any]", fields.get("auto_map") or {})
    return {auto: name for auto, name in named.items() if isinstance(name, str)}


def check_code(source: ModelSource) -> None:
    """Raise where code would run that nothing pins."""
    if not source.trust_remote_code:
        return
    is_folder = Path(source.model).is_dir()
    if not is_folder and not _COMMIT.fullmatch(source.revision or ""):
        raise CheckpointError(
            f"expected revision = a commit (40 hex digits) of {source.model!r}, whose code will "
            f"run here, got {source.revision!r}, which may be other code tomorrow; ask for the "
            f'newest commit with python -c "from huggingface_hub import model_info; '
            f"print(model_info('{source.model}').sha)\", and read that commit's *.py before you "
            f"name it"
        )
    elsewhere = [name for name in _names_of_code(source) if "--" in name]
    if elsewhere:
        raise CheckpointError(
            f"expected the code of {source.model!r} beside its weights, got {elsewhere[0]!r}, "
            f"which lies in another repository and is not pinned by this revision; copy its *.py "
            f"beside the weights in a folder, name them without '--' in its config.json and "
            f"tokenizer_config.json, and use the folder"
        )


def check_weights(source: ModelSource) -> None:
    """Raise where its weights are no safetensors of its own. A hub's are looked at as they load."""
    options = {} if source.revision is None else {"revision": source.revision}
    if cast("Any", peft_utils).find_adapter_config_file(source.model, **options) is not None:
        raise CheckpointError(
            f"expected a whole model at {source.model!r}, got an adapter (adapter_config.json), "
            f"which would load another model of its own choice; merge it into its model first"
        )
    folder = Path(source.model)
    if not folder.is_dir():
        return
    if (folder / _INDEX).is_file():
        for name in _weight_files(folder / _INDEX):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{folder / _INDEX}: expected names of safetensors files beside it, got "
                    f"{name!r}; take the model from a source that you trust"
                )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"expected weights in safetensors at {folder}, got {', '.join(pickles)}; "
            f"pickles are never read: convert weights whose maker you trust, on a machine of no "
            f"worth, with save_pretrained"
        )


def refuse_pickles(checkpoint: Path) -> None:
    """Raise where a training checkpoint holds a file that only unpickling could read."""
    pickles = sorted(path.name for path in checkpoint.rglob("*") if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{checkpoint}: expected a checkpoint of safetensors and JSON, as tidecache writes, "
            f"got {', '.join(pickles)}; pickles are never read: remove the folder, and the run "
            f"goes on from the checkpoint before it"
        )


def _names_of_code(source: ModelSource) -> list[str]:
    """Of the model's classes and of the tokenizer's; nothing is executed."""
    options = {} if source.revision is None else {"revision": source.revision}
    try:
        model, _ = cast("Any", PretrainedConfig).get_config_dict(source.model, **options)
        tokenizer = cast("Any", tokenization_auto).get_tokenizer_config(source.model, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"expected a config.json at {source.model!r}, got: {error}; check model and revision"
        ) from error
    names: list[str] = []
    for fields in (model, tokenizer):
        for name in cast("dict[str, Any]", fields.get("auto_map") or {}).values():
            several = cast("list[Any]", name if isinstance(name, list | tuple) else [name])
            names += [str(one) for one in several if one is not None]
    return names


def _weight_files(index: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: expected a weight_map, got: {error!r}") from error
