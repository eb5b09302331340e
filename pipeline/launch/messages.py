"""What training processes tell the process that launched them, one JSON line a message."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from pipeline.config.base import StrictModel
from storage_schemas import errors
from storage_schemas.errors import LostProcessError, RecordError, TidecacheError

# What gloo and NCCL say of a process that is gone.
_LOST_PEER = ("closed by peer", "reset by peer", "remote process exited")


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
        kind = getattr(errors, self.error, object)
        return issubclass(kind, TidecacheError) and kind is not RecordError  # of which runs go on

    def as_error(self) -> TidecacheError:
        """The error itself where it is our own."""
        if self.is_own:
            return getattr(errors, self.error)(self.message)
        return LostProcessError(
            f"expected training process {self.rank} to finish, got {self.error}: {self.message}\n"
            f"{self.trace}"
        )


def lost(rank: int) -> Failed:
    """What is said for a process that left without having told how it ended."""
    return Failed(
        rank=rank,
        error=LostProcessError.__name__,
        message=f"expected every training process to finish, got the end of process {rank} without "
        f"a word: it was killed (out of memory?) or crashed; run again to go on from the last "
        f"checkpoint",
        trace="",
    )


def first_cause(failures: Sequence[Failed]) -> TidecacheError:
    """Of what several processes failed by: what a user can mend, else what came first.

    When one process fails, the others lose their connection to it, and say so, or crash.
    """

    def how_late(failed: Failed) -> int:
        if failed.is_own and failed.error != LostProcessError.__name__:
            return 0
        return 2 if any(text in failed.message for text in _LOST_PEER) else 1

    return min(failures, key=how_late).as_error()


Message = Annotated[Hello | Logged | Finished | Failed, Field(discriminator="type")]
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


def encode(message: Message) -> bytes:
    """One line."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line."""
    return _MESSAGE.validate_json(line)
