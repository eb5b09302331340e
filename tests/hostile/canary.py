"""Harm that can be seen: a pickle and a module that write a file when they are read or run."""

import pickle
from pathlib import Path


def pickled(canary: Path) -> bytes:
    """A pickle that does harm wherever builtins are at hand: it names no module of this project."""
    code = f"open({str(canary)!r}, 'w').write('unpickled')"
    return b"c__builtin__\nexec\n(" + pickle.dumps(code, protocol=0)[:-1] + b"tR."


def module(canary: Path) -> str:
    """Python that does harm when it is imported."""
    return f"open({str(canary)!r}, 'w').write('imported')\n"
