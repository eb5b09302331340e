"""What training processes tell the process that launched them, one JSON line a message."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from pipeline.config.base import StrictModel
from storage_schemas import errors
from storage_schemas.errors import LostProcessError, TidecacheError


class _Message(StrictModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    rank: int


class Hello(_Message):
    """A process has started."""

    type: Literal["hello"] = "hello"
    pid: int


class Logged(_Message):
    """The metrics of a step."""

    type: Literal["logged"] = "logged"
    metrics: dict[str, float]


class Finished(_Message):
    """Trained to the end, or stopped as asked; `summary` has the fields of a TrainSummary."""

    type: Literal["finished"] = "finished"
    summary: dict[str, Any]


class Failed(_Message):
    """An error ended the process; `trace` is for errors that are not our own."""

    type: Literal["failed"] = "failed"
    error: str
    message: str
    trace: str

    @property
    def is_own(self) -> bool:
        """Whether it is one of storage_schemas.errors, which users can mend."""
        return issubclass(getattr(errors, self.error, object), TidecacheError)

    def as_error(self) -> TidecacheError:
        """The error itself where it is our own."""
        if self.is_own:
            return getattr(errors, self.error)(self.message)
        return LostProcessError(
            f"expected training process {self.rank} to finish, got {self.error}: {self.message}\n"
            f"{self.trace}"
        )


Message = Annotated[Hello | Logged | Finished | Failed, Field(discriminator="type")]
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


def encode(message: Message) -> bytes:
    """One line."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line."""
    return _MESSAGE.validate_json(line)
