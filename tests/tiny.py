"""Tiny random models, a dozen records and recipes over them: a whole run takes a second or two."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipeline.config.recipe import Recipe, parse_recipe
from pipeline.demo.corpus import ASSETS
from pipeline.diffusion.corrupt import corrupt
from pipeline.records.source import index_records, read_part
from pipeline.text.pair import make_pair
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.pace import TIMINGS
from storage_schemas.examples import Pair
from storage_schemas.views import Corruption

VOCAB = {"student": 4096, "teacher-b": 4096, "teacher-a": 3072}
BLOCK = 16
LENGTH = 96

_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # the usual 0.02 would leave every distribution flat
}

_FUNCTIONS = [
    ("clamp", "value, low, high", "Return value, no less than low and no more than high.",
     "    return max(low, min(value, high))\n"),
    ("mean", "values", "Return the arithmetic mean.",
     "    values = list(values)\n    return sum(values) / len(values)\n"),
    ("is_even", "number", "Tell whether a number is even.", "    return number % 2 == 0\n"),
    ("first", "items, default=None", "Return the first item, or a default.",
     "    for item in items:\n        return item\n    return default\n"),
    ("repeat", "text, times", "Repeat a text.", "    return text * times\n"),
    ("count", "items, wanted", "Count how often an item occurs.",
     "    total = 0\n    for item in items:\n        if item == wanted:\n"
     "            total += 1\n    return total\n"),
    ("swap", "pair", "Return a pair the other way round.",
     "    left, right = pair\n    return right, left\n"),
    ("greet", "name", "Say hello; in naïve Greek: γεια.",
     "    return f'Grüße, {name} \N{WAVING HAND SIGN}'\n"),
    ("read", "path", "Read a file.",
     "    with open(path, encoding='utf-8') as file:\n        return file.read()\n"),
    ("flatten", "rows", "Return the items of all rows.",
     "    return [item for row in rows for item in row]\n"),
    ("power", "base, exponent", "Raise a number to a power.", "    return base ** exponent\n"),
    ("invert", "mapping", "Exchange keys and values.",
     "    return {value: key for key, value in mapping.items()}\n"),
]  # fmt: skip


def lines() -> list[dict[str, Any]]:
    """The records as they stand in the file, one object a line."""
    return [
        {
            "id": f"lib/{name}.py::{name}",
            "messages": [
                {"role": "user", "content": f'def {name}({arguments}):\n    """{text}"""\n'},
                {"role": "assistant", "content": body},
            ],
        }
        for name, arguments, text, body in _FUNCTIONS
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Tiny:
    """A folder with a student, teacher B (dense, its tokenizer) and teacher A (MoE, another)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = write_lines(folder / "records.jsonl", lines())
        self.num_records = len(lines())
        torch.manual_seed(0)
        student = ChatTokenizer.load(str(ASSETS / "tokenizer-student"))
        teacher_a = ChatTokenizer.load(str(ASSETS / "tokenizer-teacher-a"))
        self.tokenizers = {"student": student, "teacher-b": student, "teacher-a": teacher_a}
        for name in ("student", "teacher-b"):
            self.save(name, Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB[name], **_SHAPE)))
        moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        config = Qwen3MoeConfig(vocab_size=VOCAB["teacher-a"], **moe, **_SHAPE)
        self.save("teacher-a", Qwen3MoeForCausalLM(config))

    def save(self, name: str, model: PreTrainedModel) -> None:
        model.save_pretrained(self.folder / name)
        self.tokenizers[name].hf.save_pretrained(self.folder / name)

    def model(self, name: str, *, attention: str = "sdpa") -> PreTrainedModel:
        """A fresh copy of a model, in float32."""
        return AutoModelForCausalLM.from_pretrained(
            self.folder / name, attn_implementation=attention, dtype=torch.float32
        ).eval()

    def recipe(self, kind: str, folder: Path, **overrides: Any) -> Recipe:
        """A recipe of pipeline "a" or "b"; `**{"noise.views": 3}` sets a key, None removes it."""
        is_a = kind == "a"
        recipe: dict[str, Any] = {
            "pipeline": {"type": "cross_tokenizer"}
            if is_a
            else {"type": "shared_tokenizer", "vocab": VOCAB["student"]},
            "records": {"type": "files", "paths": [str(self.records)], "id_field": "id"},
            "student": {
                "model": str(self.folder / "student"),
                "length": LENGTH,
                "block_size": BLOCK,
            },
            "teacher": {
                "model": str(self.folder / f"teacher-{kind}"),
                "attention": {"type": "full"} if is_a else {"type": "block", "block_size": BLOCK},
                "length": LENGTH,
                "dtype": "float32",
                "device": "cpu",
                "batch_tokens": 512,
            },
            "noise": {"views": 2} if is_a else {"views": 2, "compdemo": {}},
            "targets": {"type": "chunks", "k": 0}
            if is_a
            else {"type": "tokens", "k": 16, "tail": {"type": "even"}},
            "cache": {"path": str(folder / "cache"), "records_per_part": 5},
            "objective": {"type": "reverse_calm"} if is_a else {"type": "tidal_kl"},
            "train": {
                "output": str(folder / "out"),
                "max_steps": 6,
                "batch_size": 4,
                "learning_rate": 1e-3,
                "precision": "fp32",
                "device": "cpu",
                "log_steps": 1,
                "trackers": [],
                "loader_workers": 0,
            },
        }
        for key, value in overrides.items():
            *outer, last = key.split(".")
            table = recipe
            for name in outer:
                table = table[name]
            table[last] = value
            if value is None:
                del table[last]
        return parse_recipe(recipe, where="tiny")

    def pairs(self, recipe: Recipe) -> list[Pair]:
        """Every record of a recipe, under both tokenizers."""
        index = index_records(recipe.records, 1000)
        return [
            make_pair(
                record,
                ChatTokenizer.load(recipe.student.model),
                ChatTokenizer.load(recipe.teacher.model),
                student_length=recipe.student.length,
                teacher_length=recipe.teacher.length,
                block_size=recipe.student.block_size,
                teacher_block_size=recipe.teacher_block_size,
                is_shared_vocab=recipe.pipeline.type == "shared_tokenizer",
            )
            for record in read_part(recipe.records, index, 0)
        ]

    def views(self, recipe: Recipe) -> list[tuple[Pair, Corruption]]:
        """Every view of every record, in a shard's order."""
        noise = recipe.noise
        return [
            (pair, corrupt(pair, seed=noise.seed, view=view, eps=noise.eps, times=noise.times))
            for pair in self.pairs(recipe)
            for view in range(noise.views)
        ]


def steps_of(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    """A run's log entries without what they say of time, in which no two runs agree."""
    of_time = (*TIMINGS, "seconds_left")
    return [{name: entry[name] for name in entry if name not in of_time} for entry in logs]


def assert_same(got: Any, want: Any, where: str = "value") -> None:
    """Equal bit for bit: dataclasses field by field, arrays with their dtype."""
    assert type(got) is type(want), f"{where}: {type(got).__name__} is not {type(want).__name__}"
    if is_dataclass(want):
        for field in fields(want):
            assert_same(
                getattr(got, field.name), getattr(want, field.name), f"{where}.{field.name}"
            )
    elif isinstance(want, np.ndarray):
        assert got.dtype == want.dtype, f"{where}: {got.dtype} is not {want.dtype}"
        np.testing.assert_array_equal(got, want, err_msg=where)
    elif isinstance(want, (tuple, list)):
        assert len(got) == len(want), f"{where}: {len(got)} items are not {len(want)}"
        for i, pair in enumerate(zip(got, want, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert got == want, f"{where}: {got!r} is not {want!r}"


def files_of(folder: Path) -> Mapping[str, bytes]:
    """Every file of a cache by relative path, without the scratch folder and recipe.json."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] != "tmp"
        and path.name != "recipe.json"
    }
