"""What is to be kept, on its way to workers: plain settings, and a basis as a file of arrays."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.teacher.keep import Keep, KeepChunks, KeepHidden, KeepTokens
from storage_schemas.basis import Basis

_ARRAYS = ("mean_H", "encode_HR", "scale_R", "decode_RV", "base_V", "bias_V")


def write_keep(keep: Keep, folder: Path) -> tuple[dict[str, Any], str | None]:
    """Numbers and names for a message, and the path of the arrays beside them, if there are any.

    Workers on the same machine read it; the coder, which turns rows into bytes later, stays here.
    """
    if not isinstance(keep, KeepTokens):
        return {"type": type(keep).__name__}, None
    settings: dict[str, Any] = {
        "type": "KeepTokens",
        "k": keep.k,
        "temperatures": list(keep.temperatures),
        "vocab_size": keep.vocab_size,
    }
    basis = keep.basis
    if basis is None or not basis.rank:
        return settings, None
    path = folder / "basis.npz"
    np.savez(path, allow_pickle=False, **{name: getattr(basis, name) for name in _ARRAYS})
    return settings | {"step": basis.step, "temperature": basis.temperature}, str(path)


def read_keep(settings: dict[str, Any], arrays: str | None) -> Keep:
    """What `write_keep` was given, but for the coder."""
    if settings["type"] != "KeepTokens":
        return {"KeepChunks": KeepChunks, "KeepHidden": KeepHidden}[settings["type"]]()
    basis = None
    if arrays is not None:
        with np.load(arrays, allow_pickle=False) as file:
            basis = Basis(
                **{name: file[name] for name in _ARRAYS},
                step=settings["step"],
                temperature=settings["temperature"],
                coder=None,
            )
    return KeepTokens(
        k=settings["k"],
        temperatures=tuple(settings["temperatures"]),
        vocab_size=settings["vocab_size"],
        basis=basis,
    )
