"""The random numbers' state of one training process: Python's, NumPy's, torch's and its GPU's."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """What `set_random_state` puts back."""
    kind, keys, *position = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys, np.int64), *position),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Goes on from there; a GPU's is left out where the state or this machine has none."""
    kind, keys, *position = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *position))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
