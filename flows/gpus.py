"""A worker's own GPUs: claimed by the locks of files, which end with the process that holds them.

So no count is kept anywhere: a worker that is killed gives its GPUs back, and two runs on one host
never share one. To be called before torch reads CUDA_VISIBLE_DEVICES.
"""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from storage_schemas.errors import RecipeError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_HELD: list[int] = []
"""Open files whose locks say which GPUs are this process's."""


def claim_gpus(
    device: str,
    count: int,
    *,
    environment: MutableMapping[str, str] = os.environ,
    folder: Path | None = None,
    list_gpus: Callable[[Mapping[str, str]], list[str]] | None = None,
) -> tuple[str, ...]:
    """Makes `count` GPUs of this host, that no other worker has, the only ones visible here.

    None for device "cpu", and for "auto" on a host without GPUs. A process claims once: its GPUs
    stay its own. folder: where the locks are.
    """
    if _HELD:
        return tuple(environment[_VISIBLE].split(","))
    found = [] if device == "cpu" else (list_gpus or visible_gpus)(environment)
    if not found:
        if device == "cuda":
            raise RecipeError(
                "expected a GPU for teacher.device = 'cuda', this worker's host has none; use "
                "workers on hosts with GPUs, or teacher.device = 'auto'"
            )
        environment[_VISIBLE] = ""
        return ()
    locks = folder or Path(tempfile.gettempdir()) / f"tidecache-gpus-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    claimed: dict[str, int] = {}
    for gpu in found:
        if len(claimed) < count and (lock := _lock(locks / gpu)) is not None:
            claimed[gpu] = lock
    if len(claimed) < count:
        for lock in claimed.values():
            os.close(lock)
        raise RecipeError(
            f"expected {count} free GPUs for this worker, got {len(claimed)} of the {len(found)} "
            f"that its host shows; lower workers.count (or teacher.tensor_parallel)"
        )
    _HELD.extend(claimed.values())
    environment[_VISIBLE] = ",".join(claimed)
    return tuple(claimed)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES would name them."""
    if (named := environment.get(_VISIBLE)) is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []  # no driver, no GPU
    return told.stdout.split()


def _lock(path: Path) -> int | None:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
