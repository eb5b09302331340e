"""From the raw fields of one row to a checked Record."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, cast

from pipeline.config.records import MessagesField, RecordFields
from pipeline.records.part import Row
from storage_schemas.errors import RecordError
from storage_schemas.examples import Message, Record
from storage_schemas.skips import Skip


def columns(fields: RecordFields, id_field: str | None) -> list[str]:
    """The fields of a row that are read."""
    if isinstance(fields, MessagesField):
        names = [fields.messages_field]
    else:
        names = [fields.prompt_field, fields.response_field]
    return list(dict.fromkeys([*names, id_field] if id_field else names))


def to_record(row: Row, fields: RecordFields, id_field: str | None) -> Record | Skip:
    """The row as a Record, or why it is none."""
    record_id = ""
    try:
        if id_field is not None:
            record_id = _id(row.values, id_field)
        messages = _messages(row.values, fields)
    except RecordError as e:
        return Skip(where=row.where, record_id=record_id, reason=e.reason, message=str(e))
    return Record(id=record_id or content_id(messages), messages=messages, where=row.where)


def content_id(messages: tuple[Message, ...]) -> str:
    """The first 16 hex digits of the SHA-256 of the messages as canonical JSON."""
    values = [{"content": message.content, "role": message.role} for message in messages]
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:16]


def _id(values: Mapping[str, Any], field: str) -> str:
    value = _present(values, field)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _wrong_type(field, "text or a whole number", value)
    record_id = str(value)
    if not record_id:
        raise RecordError("missing_field", f"expected an id in {field!r}, got empty text")
    return _checked_text(record_id, field)


def _messages(values: Mapping[str, Any], fields: RecordFields) -> tuple[Message, ...]:
    if not isinstance(fields, MessagesField):
        return (
            Message(role="user", content=_text(values, fields.prompt_field)),
            Message(role="assistant", content=_text(values, fields.response_field)),
        )
    field = fields.messages_field
    turns = _present(values, field)
    if not isinstance(turns, list):
        raise _wrong_type(field, "a list of messages", turns)
    messages = tuple(
        _message(turn, f"{field}[{i}]") for i, turn in enumerate(cast("list[Any]", turns))
    )
    if not messages:
        raise RecordError("empty_messages", f"expected at least one message in {field!r}, got none")
    if messages[-1].role != "assistant":
        got = f"one of {messages[-1].role!r}"
        raise RecordError("no_response", f"expected a last message of 'assistant', got {got}")
    return messages


def _message(turn: Any, field: str) -> Message:
    if not isinstance(turn, dict):
        raise _wrong_type(field, "an object with role and content", turn)
    values = cast("dict[str, Any]", turn)
    role = _text(values, "role", f"{field}.role")
    return Message(role=role, content=_text(values, "content", f"{field}.content"))


def _text(values: Mapping[str, Any], key: str, field: str | None = None) -> str:
    value = _present(values, key, field)
    if not isinstance(value, str):
        raise _wrong_type(field or key, "text", value)
    return _checked_text(value, field or key)


def _checked_text(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        got = f"half of a surrogate pair at character {e.start + 1}"
        raise RecordError("bad_text", f"expected Unicode text in {field!r}, got {got}") from e
    return text


def _present(values: Mapping[str, Any], key: str, field: str | None = None) -> Any:
    if values.get(key) is None:  # Parquet fills an absent field with null
        got = f"the fields {', '.join(values)}" if key not in values else "null"
        raise RecordError("missing_field", f"expected the field {field or key!r}, got {got}")
    return values[key]


def _wrong_type(field: str, expected: str, value: Any) -> RecordError:
    message = f"expected {expected} in {field!r}, got {type(value).__name__}"
    return RecordError("wrong_type", message)
