"""The demo's records, and the packaged recipes with this machine's paths filled in."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.demo.corpus import Split, documented_functions, write_jsonl
from storage_schemas.examples import Record

_TABLE = re.compile(r"\[([\w.]+)\]\s*")
_ENTRY = re.compile(r"(\w+)\s*=\s*.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many records are used, and what else of the packaged recipes is changed.

    `values` go into both, `shared_values` into that of pipeline B.
    """

    train_records: int
    held_out_records: int
    values: Mapping[str, Any]
    shared_values: Mapping[str, Any]


FULL = Size(train_records=640, held_out_records=200, values={}, shared_values={})
QUICK = Size(
    train_records=16,
    held_out_records=8,
    values={
        "noise.views": 1,
        "cache.records_per_part": 8,
        "train.batch_size": 4,
        "train.log_steps": 1,
    },
    shared_values={"targets.tail.calibration_records": 6},
)

_TEACHERS = {"cross": "teacher-a", "shared": "teacher-b"}


def write_recipes(output: Path, size: Size, assets: Path) -> dict[str, Path]:
    """Writes the records as JSON lines and both recipes as they run here; the recipes' paths."""
    records, recipes = output / "records", output / "recipes"
    for folder in (records, recipes):
        folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(choose_records("train", size.train_records), records / "train.jsonl")
    write_jsonl(choose_records("held_out", size.held_out_records), records / "held_out.jsonl")
    paths: dict[str, Path] = {}
    for name, teacher in _TEACHERS.items():
        values = {
            "records.paths": [str((records / "train.jsonl").resolve())],
            "student.model": str((assets / "student").resolve()),
            "teacher.model": str((assets / teacher).resolve()),
            "cache.path": str((output / "caches" / name).resolve()),
            "train.output": str((output / "students" / name).resolve()),
            **size.values,
            **(size.shared_values if name == "shared" else {}),
        }
        packaged = (files("flows") / "recipes" / f"demo_{name}.toml").read_text(encoding="utf-8")
        paths[name] = recipes / f"{name}.toml"
        paths[name].write_text(with_values(packaged, values), encoding="utf-8")
    return paths


def choose_records(split: Split, count: int) -> list[Record]:
    """A fixed choice from all over the library: the first `count` by the hash of their ids."""

    def digest(record: Record) -> bytes:
        return blake2b(record.id.encode(), digest_size=8).digest()

    return sorted(documented_functions(split), key=digest)[:count]


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """The recipe's text with other values at these dotted keys; comments and order stay.

    Every key must stand in the text already, on a line of its own, in its table.
    """
    table = ""
    lines: list[str] = []
    missing = set(values)
    for line in text.splitlines():
        if match := _TABLE.fullmatch(line):
            table = match[1] + "."
        entry = _ENTRY.fullmatch(line)
        key = table + entry[1] if entry else ""
        if entry and key in values:
            missing.discard(key)
            # strings, numbers and lists of them are written alike in JSON and in TOML
            lines.append(f"{entry[1]} = {json.dumps(values[key], ensure_ascii=False)}")
        else:
            lines.append(line)
    assert not missing, f"the recipe has no {', '.join(sorted(missing))}"
    return "\n".join(lines) + "\n"
