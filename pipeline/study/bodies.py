"""What a student writes: bodies for held-out signatures, whether they parse, and what they match.

Likelihood is not what a reverse objective seeks; what is generated is.
"""

import ast
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import cast

from pipeline.generate.decoding import Decoding
from pipeline.generate.sample import generate
from pipeline.study.arms import Run, Split
from pipeline.study.data import BLOCK_SIZE, held_out_records, student_tokenizer
from pipeline.study.run import load_model, student_folder, write_json
from pipeline.text.render import render
from storage_schemas.examples import Record

PROMPTS, NEW_TOKENS = 48, 64
_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """Over the prompts: `parses`, the share whose function is Python; `matches`, see `token_match`.

    A body that meets the token limit is judged up to its last whole line.
    """

    parses: float
    matches: float
    tokens: float


def write_bodies_of(run: Run, output: Path) -> dict[str, float]:
    """What the run's student writes, kept beside its row."""
    path = output / "rows" / f"{run.key}.bodies.json"
    if not path.exists():
        bodies = write_bodies(student_folder(run, output) / "final", run.split)
        write_json(path, asdict(bodies))
    return json.loads(path.read_text(encoding="utf-8"))


def write_bodies(model: Path, split: Split) -> Bodies:
    """Decoded at temperature 0, one token a step, the most certain first."""
    tokenizer, student = student_tokenizer(), load_model(model)
    records = held_out_records(split)[:PROMPTS]
    rendered = [render(record.messages, tokenizer) for record in records]
    decoding = Decoding(
        max_new_tokens=NEW_TOKENS, block_size=BLOCK_SIZE, steps_per_block=BLOCK_SIZE
    )
    parses: list[bool] = []
    matches: list[float] = []
    tokens: list[int] = []
    for start in range(0, len(records), _BATCH):
        batch = slice(start, start + _BATCH)
        made = generate(
            student,
            [one.prompt_ids for one in rendered[batch]],
            decoding,
            mask_id=tokenizer.mask_id,
            eos_id=tokenizer.eos_id,
        )
        for record, one, answer in zip(records[batch], rendered[batch], made, strict=True):
            ids = answer.ids.tolist()
            text = cast("str", tokenizer.hf.decode(ids, skip_special_tokens=True))
            parses.append(is_python(record, text, is_cut=not answer.is_finished))
            matches.append(token_match(ids, one.response_ids[:NEW_TOKENS].tolist()))
            tokens.append(len(answer.ids))
    num = len(records)
    return Bodies(parses=sum(parses) / num, matches=sum(matches) / num, tokens=sum(tokens) / num)


def is_python(record: Record, body: str, *, is_cut: bool) -> bool:
    """Whether prompt and body are one function that parses, with a statement in it."""
    if is_cut:
        body = body.rpartition("\n")[0]
    source = f"{record.messages[0].content}\n{body}\n"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    function = tree.body[0] if len(tree.body) == 1 else None
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return len(function.body) > (ast.get_docstring(function, clean=False) is not None)


def token_match(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """Twice the tokens in matching runs, over all tokens of both: 1 for equal texts."""
    return SequenceMatcher(None, list(ours), list(theirs), autojunk=False).ratio()
