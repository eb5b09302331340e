"""Harm that can be seen: a pickle and a module that write a file when they are read or run."""

import pickle
from pathlib import Path


def pickled(canary: Path) -> bytes:
    """Writes the canary's file wherever it is unpickled: it names Python's own modules alone."""
    return b"c__builtin__\nexec\n(" + pickle.dumps(_code(canary, "unpickled"), 0)[:-1] + b"tR."


def module(canary: Path) -> str:
    """Python that does the same when it is imported."""
    return _code(canary, "imported") + "\n"


def _code(canary: Path, how: str) -> str:
    return f"import pathlib; pathlib.Path({str(canary)!r}).write_text({how!r})"
