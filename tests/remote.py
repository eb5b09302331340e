"""Tiny checkpoints that bring code of their own, published as the four families publish theirs."""

import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

CODE = Path(__file__).parent / "remote_code"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One kind of checkpoint: its family, its code, and the auto class it is published as."""

    family: str
    model: str
    config: str
    auto: str = "AutoModelForCausalLM"

    @property
    def module(self) -> str:
        return f"modeling_{self.family}_like"


REMOTES = {
    one.family: one
    for one in (
        Remote(family="wedlm", model="WedlmLikeForCausalLM", config="WedlmLikeConfig"),
        Remote(family="llada2", model="Llada2LikeModelLM", config="Llada2LikeConfig"),
        Remote(family="dream", model="DreamLikeModel", config="DreamLikeConfig", auto="AutoModel"),
        Remote(family="llada", model="LladaLikeModelLM", config="LladaLikeConfig"),
    )
}


def make_model(family: str, **shape: Any) -> PreTrainedModel:
    """A model with random weights, from the code as it lies in the repository."""
    remote = REMOTES[family]
    module = importlib.import_module(f"remote_code.{remote.module}")
    torch.manual_seed(0)
    model = getattr(module, remote.model)(getattr(module, remote.config)(**shape)).eval()
    for parameter in model.parameters():
        # the usual size would leave every distribution flat
        nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    return model


def publish(model: PreTrainedModel, family: str, folder: Path) -> Path:
    """Weights, config.json and code in one folder, as a hub repository holds them."""
    remote = REMOTES[family]
    model.save_pretrained(folder)
    for name in (remote.module, "tiny_layers"):
        shutil.copy(CODE / f"{name}.py", folder)
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields["auto_map"] = {
        "AutoConfig": f"{remote.module}.{remote.config}",
        remote.auto: f"{remote.module}.{remote.model}",
    }
    path.write_text(json.dumps(fields))
    return folder
