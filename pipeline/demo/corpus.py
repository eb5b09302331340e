"""Real prompts and responses: the functions of the running Python's standard library.

A prompt is a function's signature and docstring, the response its body, both as in the source. The
split is by source file, so no function shares a file with one that it is compared to.
"""

import ast
import json
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from sysconfig import get_path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from storage_schemas.examples import Message, Record

Split = Literal["train", "held_out"]
Function = ast.FunctionDef | ast.AsyncFunctionDef

ASSETS = Path(__file__).parent / "assets"
_INDENT = "    "
_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TESTS = frozenset({"test", "tests", "idle_test"})  # some distributions leave these out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function:
    """One function of one file, and whether its prompt ends in a docstring."""

    path: str
    name: str
    line: int
    prompt: str
    response: str
    is_documented: bool

    @property
    def digest(self) -> int:
        """Hash of the response, blind to whitespace."""
        text = " ".join(self.response.split())
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def documented_functions(split: Split) -> list[Record]:
    """The demo's records: each documented function outside the library's own tests, once.

    A held-out function is left out when its response, up to whitespace, also occurs in the training
    split here or in what the bundled models were trained on, whichever Python they saw it in.
    """
    functions = [
        function
        for function in _library()
        if function.is_documented and not _TESTS.intersection(function.path.split("/"))
    ]
    return _records(functions, split)


def all_functions(split: Split = "train") -> list[Record]:
    """Everything the bundled models learn from: undocumented functions and tests as well.

    How many there are depends on the Python and on whether its package carries its tests.
    """
    return _records(list(_library(with_tests=True)), split)


def is_held_out(relative_path: str) -> bool:
    """Whether a file's functions are kept from training: one in ten, by its path in the library."""
    digest = blake2b(relative_path.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 10 == 0


def seen_digests() -> NDArray[np.uint64]:
    """Sorted hashes of every response that the bundled models were trained on."""
    return np.load(ASSETS / "seen.npy", allow_pickle=False)


def write_seen(path: Path) -> None:
    """Write the hashes of every response of `all_functions('train')`, sorted."""
    digests = {
        function.digest for function in _library(with_tests=True) if not is_held_out(function.path)
    }
    np.save(path, np.array(sorted(digests), dtype=np.uint64), allow_pickle=False)


def write_jsonl(records: list[Record], path: Path) -> None:
    """Write records as JSON lines: `id` and `messages`, UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            messages = [{"role": m.role, "content": m.content} for m in record.messages]
            line = json.dumps({"id": record.id, "messages": messages}, ensure_ascii=False)
            file.write(line + "\n")


def _records(functions: list[_Function], split: Split) -> list[Record]:
    used: set[int] = set()
    if split == "held_out":
        used = set(seen_digests().tolist())
        used.update(function.digest for function in functions if not is_held_out(function.path))
    responses: set[str] = set()
    ids: set[str] = set()
    records: list[Record] = []
    for function in functions:
        if is_held_out(function.path) != (split == "held_out") or function.response in responses:
            continue
        if split == "held_out" and function.digest in used:
            continue
        record_id = f"{function.path}::{function.name}"
        if record_id in ids:
            record_id += f":{function.line}"
        responses.add(function.response)
        ids.add(record_id)
        messages = (
            Message(role="user", content=function.prompt),
            Message(role="assistant", content=function.response),
        )
        where = f"{function.path}:{function.line}"
        records.append(Record(id=record_id, messages=messages, where=where))
    return records


@cache
def _library(*, with_tests: bool = False) -> tuple[_Function, ...]:
    root = Path(get_path("stdlib"))
    skipped = _NOT_THE_LIBRARY if with_tests else _NOT_THE_LIBRARY | _TESTS
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    kept = [path for path in paths if skipped.isdisjoint(path.split("/"))]
    return tuple(function for path in kept for function in _functions_of_file(root, path))


def _functions_of_file(root: Path, path: str) -> Iterator[_Function]:
    try:
        with tokenize.open(root / path) as file, warnings.catch_warnings():
            source = file.read()
            warnings.simplefilter("ignore")  # a bad escape in old code is no fault of ours
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # the library's tests hold broken files on purpose
    lines = source.split("\n")
    for name, node in _named_functions(tree, ""):
        function = _cut(lines, node, path, name)
        if function is not None:
            yield function


def _named_functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    """Functions and methods; one inside a function is part of that one's body already."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _named_functions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr):
            yield from _named_functions(node, prefix)


def _cut(lines: list[str], node: Function, path: str, name: str) -> _Function | None:
    """The function cut after its docstring, or after its signature; None if no line parts them."""
    is_documented = ast.get_docstring(node, clean=False) is not None
    rest = node.body[1:] if is_documented else node.body
    if not rest:
        return None
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    if is_documented:
        cut = _last_line(node.body[0])
    else:
        cut = _first_line(rest[0]) - 1
        while not lines[cut - 1].strip() or lines[cut - 1].lstrip().startswith("#"):
            cut -= 1
    if cut < node.lineno or _first_line(rest[0]) <= cut:
        return None
    body = _dedent(lines[cut : _last_line(node)], node.col_offset)
    while not body[0].strip():
        body = body[1:]
    if not body[0].startswith(_INDENT) or body[0][len(_INDENT)].isspace():
        return None
    return _Function(
        path=path,
        name=name,
        line=node.lineno,
        prompt="\n".join(_dedent(lines[start:cut], node.col_offset)),
        response="\n".join(body),
        is_documented=is_documented,
    )


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _last_line(node: ast.stmt) -> int:
    assert node.end_lineno is not None, "ast.parse sets end_lineno"
    return node.end_lineno


def _dedent(lines: list[str], indent: int) -> list[str]:
    return [line[min(indent, len(line) - len(line.lstrip())) :].rstrip("\r") for line in lines]
