"""A recipe file over tiny models and a few records, for commands that read such a file."""

import json
from pathlib import Path

from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from pipeline.demo.corpus import ASSETS

NUM_RECORDS = 6
MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
RECIPE = """
[pipeline]
type = "cross_tokenizer"

[records]
type = "files"
paths = ["{records}"]
id_field = "id"

[student]
model = "{models}/student"
length = 64
block_size = 16

[teacher]
model = "{models}/teacher"
length = 64
dtype = "float32"
device = "cpu"
batch_tokens = 256
attention = {{ type = "full" }}

[noise]
views = 2

[targets]
type = "chunks"

[cache]
path = "{folder}/cache"
records_per_part = {records_per_part}

[objective]
type = "reverse_calm"

[train]
output = "{folder}/student"
max_steps = 2
batch_size = 2
precision = "fp32"
device = "cpu"
log_steps = 1
trackers = []
loader_workers = 0
"""


def save_models(folder: Path) -> Path:
    """A student and a teacher with random weights and the bundled tokenizers."""
    tokenizers = {"student": "tokenizer-student", "teacher": "tokenizer-teacher-a"}
    for name, tokenizer_name in tokenizers.items():
        tokenizer = AutoTokenizer.from_pretrained(ASSETS / tokenizer_name)
        tokenizer.save_pretrained(folder / name)
        config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **MODEL)
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
    return folder


def write_recipe_file(
    folder: Path, models: Path, *, records: int = NUM_RECORDS, records_per_part: int = 2
) -> Path:
    """The recipe, beside its records, its cache-to-be and its student-to-be."""
    folder.mkdir()
    lines = [
        {
            "id": f"r{i}",
            "messages": [
                {"role": "user", "content": f"Write a function that adds {i}."},
                {"role": "assistant", "content": f"def add(x):\n    return x + {i}\n"},
            ],
        }
        for i in range(records)
    ]
    data = folder / "records.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = folder / f"{folder.name}.toml"
    recipe.write_text(
        RECIPE.format(records=data, models=models, folder=folder, records_per_part=records_per_part)
    )
    return recipe
