"""What training needs besides weights, in a safetensors file: tensors, and JSON around them.

transformers would pickle it. A tensor stands in the JSON as its number; keys that are no texts, and
tuples, come back as what they were, and so does every number to its last bit.
"""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from storage_schemas.errors import CheckpointError

_STATE = "state"


def write_state(path: Path, state: object) -> None:
    """Writes nested dicts, lists and tuples of tensors, arrays and plain values; all on the CPU."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(state, tensors))
    path.parent.mkdir(parents=True, exist_ok=True)  # another process may not have made it yet
    cast("Any", safetensors.torch).save_file(tensors, path, metadata={_STATE: text})


def read_state(path: Path) -> Any:
    """What was written; arrays come back as tensors. Nothing that the file says is executed."""
    try:
        with cast("Any", safetensors).safe_open(path, framework="pt") as file:
            return _state(json.loads(file.metadata()[_STATE]), file)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"expected {path}, got no such file; remove its folder, and the run goes on from the "
            f"checkpoint before it"
        ) from error
    except Exception as error:  # safetensors has a class of its own, and nonsense has many
        raise CheckpointError(
            f"{path}: expected a training state that tidecache wrote, got: {error!r}; remove its "
            f"folder, and the run goes on from the checkpoint before it"
        ) from error


def _plain(value: object, tensors: dict[str, Tensor]) -> Any:
    match value:
        case Tensor() | np.ndarray():
            tensor = torch.as_tensor(value).detach().cpu()
            tensors[name := str(len(tensors))] = tensor.clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        case dict():
            items = cast("dict[object, object]", value).items()
            return {"dict": [[_plain(k, tensors), _plain(v, tensors)] for k, v in items]}
        case tuple():
            return {"tuple": [_plain(one, tensors) for one in cast("tuple[object, ...]", value)]}
        case list():
            return [_plain(one, tensors) for one in cast("list[object]", value)]
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise AssertionError(f"a training state holds no {type(value).__name__}")


def _state(value: Any, file: Any) -> Any:
    match value:
        case {"tensor": name}:
            return file.get_tensor(name)
        case {"dict": items}:
            return {_state(k, file): _state(v, file) for k, v in items}
        case {"tuple": items}:
            return tuple(_state(one, file) for one in items)
        case list():
            return [_state(one, file) for one in cast("list[Any]", value)]
        case _:
            return value
