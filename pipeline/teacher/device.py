"""Where the teacher runs, and how much of it at once."""

import torch

from pipeline.config.models import TeacherConfig

_BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}  # on a CPU more would only leave its caches


def torch_device(name: str) -> torch.device:
    """The named device; `auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def batch_tokens(config: TeacherConfig, device: torch.device) -> int:
    """What the recipe says, else what suits the device."""
    return config.batch_tokens or _BATCH_TOKENS[device.type]
