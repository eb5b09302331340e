"""Prompts from lines of JSON, for `tidecache generate`: all are checked before a model runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.records import jsonl
from pipeline.records.files import is_parquet, matching_files
from pipeline.records.part import Part, Row
from pipeline.text.render import render_prompt
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecipeError, RecordError
from storage_schemas.examples import Ints, Message

_ALL = 1 << 62  # records in a part: the file is one part


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt's tokens; `where` it was read is for messages to people."""

    id: str
    ids: Ints
    where: str


def read_prompts(path: Path, tokenizer: ChatTokenizer) -> list[Prompt]:
    """The prompts of a file, in its order; the first unusable line is a RecordError.

    A line has a text `prompt`, or `messages`, whose last one is left out where it is the
    assistant's: it is the response to be learned, in the files that students are trained on. Its
    `id` is the line's number if it has none.
    """
    (file,) = matching_files((str(path),))
    if is_parquet(file):
        raise RecipeError(f"{file}: expected lines of JSON, got Parquet; write them as .jsonl")
    prompts: dict[str, Prompt] = {}
    for row in _rows(file):
        try:
            one = text_prompt(_messages(row), tokenizer, name=_id(row), where=row.where)
            if one.id in prompts:
                raise RecordError(
                    "duplicate_id", f"expected an id of its own, got {one.id!r} again"
                )
        except RecordError as error:
            raise RecordError(error.reason, f"{row.where}: {error}") from error
        prompts[one.id] = one
    if not prompts:
        raise RecipeError(f"{file}: expected a prompt or more, got none")
    return list(prompts.values())


def text_prompt(
    messages: tuple[Message, ...], tokenizer: ChatTokenizer, *, name: str, where: str
) -> Prompt:
    """A conversation as the model's template writes it, up to where its response begins."""
    return Prompt(id=name, ids=render_prompt(messages, tokenizer), where=where)


def _rows(file: str) -> Iterator[Row]:
    _, spans = jsonl.scan(file, _ALL)
    for number, span in enumerate(spans):
        for row in jsonl.read(Part(number=number, file=file, span=span)):
            if not isinstance(row, Row):
                raise RecordError(row.reason, f"{row.where}: {row.message}")
            yield row


def _id(row: Row) -> str:
    value = row.values.get("id")
    if value is None:
        return row.where.rpartition(":")[2]
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise RecordError("wrong_type", f"expected an id of text or a whole number, got {value!r}")
    return str(value)


def _messages(row: Row) -> tuple[Message, ...]:
    prompt, turns = row.values.get("prompt"), row.values.get("messages")
    if (prompt is None) == (turns is None):
        fields = ", ".join(row.values) or "none"
        raise RecordError(
            "missing_field", f"expected one of the fields 'prompt' and 'messages', got {fields}"
        )
    if turns is None:
        return (Message(role="user", content=_text(prompt, "prompt")),)
    if not isinstance(turns, list) or not turns:
        raise RecordError("wrong_type", f"expected 'messages' to be a list of them, got {turns!r}")
    messages = tuple(_message(turn) for turn in cast("list[Any]", turns))
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise RecordError("wrong_type", f"expected a message with role and content, got {turn!r}")
    fields = cast("dict[str, Any]", turn)
    return Message(
        role=_text(fields.get("role"), "role"), content=_text(fields.get("content"), "content")
    )


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise RecordError("wrong_type", f"expected text in {field!r}, got {value!r}")
    return value
