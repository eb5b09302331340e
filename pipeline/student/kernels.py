"""Which attention trains the student: SDPA with a mask of booleans, or flex attention."""

from typing import Literal

import torch

from pipeline.diffusion.flex import FLEX
from storage_schemas.errors import RecipeError

Kernel = Literal["sdpa", "flex"]

_IMPLEMENTATIONS: dict[Kernel, str] = {"sdpa": "sdpa", "flex": FLEX}


def choose_kernel(asked: Literal["auto"] | Kernel, device: torch.device) -> tuple[Kernel, str]:
    """The kernel, and why it is the one; one that cannot train there is refused."""
    if asked == "auto":
        if device.type == "cuda":
            return "flex", "it skips what the block mask hides"
        return "sdpa", f"flex attention trains on GPUs, the student is on {device}"
    if asked == "flex" and device.type != "cuda":
        raise RecipeError(
            f"expected train.kernel 'sdpa' or 'auto' on {device}, got 'flex', which has no "
            f"backward pass there; set train.kernel to 'auto'"
        )
    return asked, "the recipe asks for it"


def implementation_of(kernel: Kernel) -> str:
    """What transformers calls it."""
    return _IMPLEMENTATIONS[kernel]
