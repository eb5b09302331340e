"""Where the records are, and which of their fields hold the conversation."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from pipeline.config.base import StrictModel

Name = Annotated[str, StringConstraints(min_length=1)]


class MessagesField(StrictModel):
    """One field holds the whole conversation: a list of objects with `role` and `content`."""

    type: Literal["messages"] = "messages"
    messages_field: Name = "messages"


class PromptAndResponseFields(StrictModel):
    """Two fields of text hold one question and its answer."""

    type: Literal["prompt_and_response"] = "prompt_and_response"
    prompt_field: Name
    response_field: Name

    @model_validator(mode="after")
    def _two_different_fields(self) -> "PromptAndResponseFields":
        if self.prompt_field == self.response_field:
            message = f"prompt_field and response_field are both {self.prompt_field!r}"
            raise ValueError(f"{message}; name two different fields")
        return self


RecordFields = Annotated[MessagesField | PromptAndResponseFields, Field(discriminator="type")]


class FilesSource(StrictModel):
    """Files named .jsonl, .ndjson (either also .gz) or .parquet: paths, globs or fsspec URLs.

    They are read in the order of their names. Without id_field, a record's id comes from its text.
    """

    type: Literal["files"]
    paths: Annotated[tuple[Name, ...], Field(min_length=1)]
    fields: RecordFields = MessagesField()
    id_field: Name | None = None


class HubSource(StrictModel):
    """A data set that `datasets.load_dataset` knows; a branch is taken at its commit of the day.

    Where response_contains is given, records whose response lacks that text are no part of it.
    """

    type: Literal["hub"]
    name: Name
    subset: Name | None = None
    revision: Name
    split: Name
    fields: RecordFields = MessagesField()
    id_field: Name | None = None
    response_contains: Name | None = None


RecordSource = Annotated[FilesSource | HubSource, Field(discriminator="type")]


class MixtureSource(StrictModel):
    """Several sources, one after the other, as one set of records."""

    type: Literal["mixture"]
    sources: Annotated[tuple[RecordSource, ...], Field(min_length=2)]


RecordsConfig = Annotated[FilesSource | HubSource | MixtureSource, Field(discriminator="type")]
