"""A native teacher of about 50M random parameters, and real records of 64 to 256 of its tokens.

Speed does not depend on what the weights are, only on their shapes; the text is that of Python's
own library, and the tokenizer is trained on it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.config.recipe import Recipe, parse_recipe
from pipeline.demo.corpus import ASSETS, documented_functions, write_jsonl
from pipeline.demo.tokenizers import TEACHER_A, Design, save, train
from pipeline.diffusion.compdemo import teacher_passes
from pipeline.diffusion.corrupt import corrupt
from pipeline.records.source import index_records, read_part
from pipeline.teacher.examples import load_tokenizers, pair_or_skip
from storage_schemas.examples import Pair, Record
from storage_schemas.views import TeacherPass

VOCAB, HIDDEN = 32_768, 512
NUM_RECORDS, SHORTEST, LONGEST = 256, 64, 256


@dataclass(frozen=True, slots=True)
class NativeTeacher:
    """The folder that holds the teacher, its tokenizer and the records, and recipes over them."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "NativeTeacher":
        """Trains the tokenizer, draws the weights, chooses the records; always the same."""
        made = cls(folder)
        if made._done.exists():
            return made
        folder.mkdir(parents=True, exist_ok=True)
        records = documented_functions("train")
        texts = [message.content for record in records for message in record.messages]
        design = Design(
            folder="teacher",
            vocab_size=VOCAB,
            words=TEACHER_A.words,
            special_tokens=TEACHER_A.special_tokens,
            eos_token=TEACHER_A.eos_token,
            mask_token=TEACHER_A.mask_token,
            chat_template=TEACHER_A.chat_template,
        )
        save(train(design, texts), design, folder / "teacher")
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=10,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=64,
            intermediate_size=1536,
            tie_word_embeddings=True,
            initializer_range=0.05,  # logits of a few nats, as trained models have
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / "teacher")
        chosen = made._choose(records)
        write_jsonl(chosen, folder / "records.jsonl")
        made._done.write_text(json.dumps({"records": len(chosen)}))
        return made

    @property
    def _done(self) -> Path:
        return self.folder / "done.json"

    def _choose(self, records: list[Record]) -> list[Record]:
        """Records at even distances, among those of the right length."""
        write_jsonl(records, self.folder / "records.jsonl")
        recipe = self.recipe(self.folder / "unused")
        student, teacher = load_tokenizers(recipe)
        fitting: list[Record] = []
        for record in records:
            pair = pair_or_skip(record, recipe, student, teacher)
            if isinstance(pair, Pair) and SHORTEST <= len(pair.teacher_ids_T) <= LONGEST:
                fitting.append(record)
        return fitting[:: len(fitting) // NUM_RECORDS][:NUM_RECORDS]

    def recipe(self, cache: Path, **overrides: Any) -> Recipe:
        """Stage 1 over the records: one view, chunk targets with the top 16 beside them.

        An override is a whole table, or one dotted key.
        """
        fields: dict[str, Any] = {
            "pipeline": {"type": "cross_tokenizer"},
            "records": {
                "type": "files",
                "paths": [str(self.folder / "records.jsonl")],
                "id_field": "id",
            },
            "student": {
                "model": str(ASSETS / "tokenizer-student"),
                "length": 1024,
                "block_size": 32,
            },
            "teacher": {
                "model": str(self.folder / "teacher"),
                "attention": {"type": "full"},
                "length": 512,
                "dtype": "float32",
                "device": "cpu",
            },
            "noise": {"seed": 0, "views": 1},
            "targets": {"type": "chunks", "k": 16},
            "cache": {"path": str(cache), "records_per_part": 64},
            "train": {"output": str(self.folder / "unused")},
        }
        fields |= {key: value for key, value in overrides.items() if isinstance(value, dict)}
        dotted = [f"{k}={json.dumps(v)}" for k, v in overrides.items() if not isinstance(v, dict)]
        return parse_recipe(fields, where="benchmark", overrides=dotted)

    def passes(self) -> list[TeacherPass]:
        """Each record's one pass under the first view's noise, in order."""
        recipe = self.recipe(self.folder / "unused")
        student, teacher = load_tokenizers(recipe)
        index = index_records(recipe.records, recipe.cache.records_per_part)
        found = [
            pair_or_skip(record, recipe, student, teacher)
            for part in index.parts
            for record in read_part(recipe.records, index, part.number)
            if isinstance(record, Record)
        ]
        return [
            one
            for pair in found
            if isinstance(pair, Pair)
            for one in teacher_passes(
                pair,
                corrupt(pair, seed=0, view=0, eps=recipe.noise.eps),
                mask_id=teacher.mask_id,
                seed=0,
                demo_ratio=None,
            )
        ]
