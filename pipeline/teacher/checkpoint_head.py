"""The head of a checkpoint, read from its files: for an engine that keeps its weights to itself."""

import json
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.config.models import ModelSource
from storage_schemas.errors import TeacherError

_HEAD, _TIED = "lm_head", "model.embed_tokens"


def read_head(source: ModelSource, *, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """The linear map from hidden states to logits; the input embeddings where the two are tied."""
    folder = Path(source.model)
    if not folder.is_dir():
        patterns = ["*.safetensors", "*.safetensors.index.json"]
        hub = cast("Any", huggingface_hub)
        folder = Path(
            hub.snapshot_download(source.model, revision=source.revision, allow_patterns=patterns)
        )
    files = _files_by_tensor(folder)
    name = _HEAD if f"{_HEAD}.weight" in files else _TIED
    if f"{name}.weight" not in files:
        raise TeacherError(
            f"expected a head ({_HEAD}.weight, or {_TIED}.weight where they are tied) in the "
            f"safetensors files of {source.model!r}, got neither"
        )
    weight_VH = _read(files, f"{name}.weight").to(device, dtype)
    with torch.device("meta"):
        head = nn.Linear(weight_VH.shape[1], weight_VH.shape[0], bias=f"{name}.bias" in files)
    head.weight = nn.Parameter(weight_VH, requires_grad=False)
    if f"{name}.bias" in files:
        bias_V = _read(files, f"{name}.bias").to(device, dtype)
        head.bias = nn.Parameter(bias_V, requires_grad=False)
    return head


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {tensor: folder / name for tensor, name in names.items()}
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(path) as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _read(files: dict[str, Path], tensor: str) -> Tensor:
    with _opened(files[tensor]) as file:
        return file.get_tensor(tensor)


def _opened(path: Path) -> Any:
    return cast("Any", safe_open)(path, framework="pt")
