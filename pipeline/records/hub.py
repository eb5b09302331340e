"""Rows of a Hugging Face data set, at one commit."""

import json
import re
from functools import lru_cache
from hashlib import sha256
from typing import Any, cast

import datasets  # pyright: ignore[reportMissingTypeStubs]

from pipeline.config.records import HubSource, MessagesField
from pipeline.records.parquet import require_columns
from pipeline.records.part import Part, Row, Rows, Span, even_spans
from storage_schemas.errors import RecipeError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def scan(
    config: HubSource, columns: list[str], records_per_part: int
) -> tuple[str, bytes, list[Span]]:
    """The data set with its commit as `name@commit`, the digest of its content, and its spans.

    At a commit, the content is known by name. Elsewhere (a folder on disk) the rows are hashed.
    """
    revision = _commit(config)
    _load_once.cache_clear()  # a folder on disk may have changed
    data = _load(config, revision)
    address = f"{config.name}@{revision}"
    require_columns(f"{address}, split {config.split}", columns, data.column_names)
    digest = sha256()
    if _COMMIT.fullmatch(revision):
        identity = [config.name, config.subset, revision, config.split]
        if config.response_contains is not None:
            identity.append(config.response_contains)
        digest.update(json.dumps(identity).encode())
    else:
        for row in data.select_columns(columns):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return address, digest.digest(), list(even_spans(len(data), records_per_part))


def read(config: HubSource, part: Part, columns: list[str]) -> Rows:
    """The part's rows, from the commit that was indexed."""
    address, _, revision = part.file.rpartition("@")
    data = _load(config, revision).select_columns(columns)
    rows = range(part.span.start, part.span.start + part.span.num_records)
    for i, values in zip(rows, data.select(rows), strict=True):
        yield Row(where=f"{address}:{config.split} row {i + 1}", values=values)


def _commit(config: HubSource) -> str:
    """The commit that a branch or tag stands at; the revision as it is for a folder on disk."""
    try:
        builder: Any = datasets.load_dataset_builder(  # pyright: ignore[reportUnknownMemberType]
            config.name, config.subset, revision=config.revision
        )
    except (FileNotFoundError, ValueError) as e:
        raise _cannot_load(config.name, config.subset, config.revision, config.split, e) from e
    return builder.hash if _COMMIT.fullmatch(builder.hash or "") else config.revision


def _load(config: HubSource, revision: str) -> Any:
    chosen = None
    if (text := config.response_contains) is not None:
        own = config.fields
        chosen = own.messages_field if isinstance(own, MessagesField) else own.response_field, text
    return _load_once(config.name, config.subset, revision, config.split, chosen)


@lru_cache(maxsize=1)
def _load_once(
    name: str, subset: str | None, revision: str, split: str, chosen: tuple[str, str] | None
) -> Any:
    """chosen: a column, and the text that the response in it must contain."""
    try:
        data = cast("Any", datasets).load_dataset(name, subset, revision=revision, split=split)
    except (FileNotFoundError, ValueError) as e:
        raise _cannot_load(name, subset, revision, split, e) from e
    if chosen is None or chosen[0] not in data.column_names:  # the caller names what it misses
        return data
    column, text = chosen
    return data.filter(_is_in_response, input_columns=[column], fn_kwargs={"text": text})


def _is_in_response(value: Any, text: str) -> bool:
    """Of a text, or of a conversation's last message; what is neither is left to be reported."""
    match value:
        case [*_, {"content": str(response)}] | str(response):
            return text in response
        case _:
            return True


def _cannot_load(
    name: str, subset: str | None, revision: str, split: str, error: Exception
) -> RecipeError:
    return RecipeError(
        f"expected the data set {name!r} (subset {subset!r}) at revision {revision!r} with split "
        f"{split!r}, got {type(error).__name__}: {error}; "
        "check `name`, `subset`, `revision` and `split` of the records"
    )
