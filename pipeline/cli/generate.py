"""`tidecache generate`: a saved student's responses, as text to look at or as lines of JSON."""

import json
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
import typer
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline.cli.prompts import Prompt, read_prompts, text_prompt
from pipeline.generate.decoding import Decoding
from pipeline.generate.sample import Generation, Progress, generate, longest_prompt
from pipeline.student.checkpoint import saved_student
from pipeline.student.model import load_student
from pipeline.text.response import ResponseText
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import CacheWriteError, RecipeError, RecordError
from storage_schemas.examples import Ints, Message

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A loaded student, and what reads its tokens."""

    model: PreTrainedModel
    tokenizer: ChatTokenizer
    block_size: int


def load(checkpoint: str, *, block_size: int | None, device: str, dtype: str) -> Student:
    """The student of a checkpoint, ready to generate; `auto` is a GPU in bfloat16, else float32."""
    where = _device(device)
    if dtype != "auto" and dtype not in _DTYPES:
        raise RecipeError(f"expected a dtype among auto, {', '.join(_DTYPES)}, got {dtype!r}")
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    transformers_logging.disable_progress_bar()  # weights are there in a moment
    config = saved_student(checkpoint, block_size=block_size)
    tokenizer = ChatTokenizer.load(
        config.model, mask_token=config.mask_token, mask_id=config.mask_id
    )
    model = cast("Any", load_student(config)).to(device=where, dtype=_DTYPES[dtype])
    return Student(model=model, tokenizer=tokenizer, block_size=config.block_size)


def show_response(student: Student, text: str, decoding: Decoding) -> None:
    """Prints the response to one question, block by block as it is decided; then the speed."""
    message = Message(role="user", content=text)
    prompt = text_prompt((message,), student.tokenizer, name="0", where="--prompt")
    reader = ResponseText.of(student.tokenizer)
    shown = ""

    def show(place: int, ids: Ints) -> None:
        nonlocal shown
        del place
        so_far = reader.of_tokens(ids).rstrip("\ufffd")  # half a character may still grow
        typer.echo(so_far[len(shown) :], nl=False)
        sys.stdout.flush()
        shown = so_far

    with _timed() as done:
        done += respond(student, [prompt], decoding, batch_size=1, on_progress=show)
    typer.echo()


def write_responses(
    student: Student,
    prompts_file: Path,
    decoding: Decoding,
    *,
    output: Path | None,
    batch_size: int,
) -> None:
    """One line of JSON a prompt, in their order, to a file or to standard output."""
    prompts = read_prompts(prompts_file, student.tokenizer)
    reader = ResponseText.of(student.tokenizer)
    with _timed() as done, _lines_to(output) as file:
        responses = respond(student, prompts, decoding, batch_size=batch_size)
        for prompt, response in zip(prompts, responses, strict=True):
            done.append(response)
            line = {
                "id": prompt.id,
                "response": reader.of_tokens(response.ids),
                "num_tokens": len(response.ids),
                "num_steps": response.num_steps,
                "is_finished": response.is_finished,
            }
            print(json.dumps(line, ensure_ascii=False), file=file, flush=True)


def respond(
    student: Student,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    batch_size: int,
    on_progress: Progress | None = None,
) -> Iterator[Generation]:
    """The responses in order, a batch at a time; each has random numbers of its prompt's id."""
    limit = longest_prompt(student.model, decoding)
    for prompt in prompts:
        if limit is not None and len(prompt.ids) > limit:
            raise RecordError(
                "long_prompt",
                f"{prompt.where}: expected a prompt of at most {limit} tokens, which leaves the "
                f"model {decoding.max_new_tokens} for the response, got {len(prompt.ids)}; shorten "
                f"it, or lower --max-new-tokens",
            )
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        yield from generate(
            student.model,
            [prompt.ids for prompt in batch],
            decoding,
            mask_id=student.tokenizer.mask_id,
            eos_id=student.tokenizer.eos_id,
            names=[prompt.id for prompt in batch],
            on_progress=on_progress,
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"expected a device such as auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"expected a GPU for the device {name!r}, got none; take cpu or auto")
    return device


@contextmanager
def _timed() -> Generator[list[Generation]]:
    """Fills with what was generated, and says on standard error how fast that was."""
    done: list[Generation] = []
    began = time.perf_counter()
    yield done
    seconds = time.perf_counter() - began
    num_tokens = sum(len(one.ids) for one in done)
    num_steps = sum(one.num_steps for one in done)
    typer.echo(
        f"{num_tokens} tokens in {num_steps} steps, {seconds:.1f} s: "
        f"{num_tokens / seconds:.1f} tokens/s",
        err=True,
    )


@contextmanager
def _lines_to(output: Path | None) -> Generator[IO[str]]:
    """The file, there once it is whole; or standard output."""
    if output is None:
        yield sys.stdout
        return
    scratch = output.with_name(f".{output.name}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = scratch.open("w", encoding="utf-8")
    except OSError as error:
        raise CacheWriteError(f"expected to write {output}, got: {error}") from error
    try:
        with file:
            yield cast("IO[str]", file)
        scratch.replace(output)
    finally:
        scratch.unlink(missing_ok=True)
