"""Which held-out text the students are scored on: given records, or what the runs have kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.records import FilesSource
from pipeline.evaluate.heldout import HeldOut, draw_held_out
from pipeline.report.runs import FinishedRun
from pipeline.text.tokenizer import ChatTokenizer
from pipeline.train.held_out import HELD_OUT_FILE, held_out_records, refuse_cached
from storage_schemas.errors import CacheMissingError, RecipeError

_MAX_RECORDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The masks, and where the text is from."""

    held_out: HeldOut
    source: str
    notes: tuple[str, ...] = ()


def load_tokenizer(runs: Sequence[FinishedRun]) -> ChatTokenizer:
    """The tokenizer that all students share; they have to read in one way to be compared."""
    tokenizers = [_tokenizer(run) for run in runs]
    ways = {
        (tokenizer.fingerprint, run.recipe.student.block_size)
        for tokenizer, run in zip(tokenizers, runs, strict=True)
    }
    if len(ways) > 1:
        raise RecipeError(
            "expected students with the same tokenizer and block size, whose likelihoods compare, "
            f"got {len(ways)} kinds among {', '.join(str(run.folder) for run in runs)}; make a "
            "report of each kind"
        )
    return tokenizers[0]


def choose_text(
    runs: Sequence[FinishedRun],
    records: Sequence[str | Path],
    tokenizer: ChatTokenizer,
    known: HeldOut | None,
) -> Text | None:
    """`records`, if any; else what is known; else the masks that all runs have kept; else None."""
    if records:
        return _drawn(runs, [str(path) for path in records], tokenizer)
    if known is not None:
        return Text(held_out=known, source="held-out records")
    stored = [run.folder / HELD_OUT_FILE for run in runs]
    there = [HeldOut.load(path) for path in stored if path.exists()]
    if not there:
        return None
    if len({one.fingerprint for one in there}) > 1:
        raise RecipeError(
            "expected runs that keep the same held-out masks, got several; name the text for all "
            "of them with --records"
        )
    return Text(held_out=there[0], source="the runs' held-out records")


def _drawn(runs: Sequence[FinishedRun], paths: list[str], tokenizer: ChatTokenizer) -> Text:
    """Independent masks of these records, which no run may have been trained on."""
    student, source = runs[0].recipe.student, runs[0].recipe.records
    config = (
        source.model_copy(update={"paths": tuple(paths)})
        if isinstance(source, FilesSource)
        else FilesSource(type="files", paths=tuple(paths))
    )
    held_out, skips = draw_held_out(
        held_out_records(config),
        tokenizer,
        length=student.length,
        block_size=student.block_size,
        max_records=_MAX_RECORDS,
    )
    notes = [f"{len(skips)} of the records could not be used."] if skips else []
    ids = [record.record_id for record in held_out.records]
    for cache in dict.fromkeys(run.cache for run in runs):
        try:
            refuse_cached(ids, cache)
        except CacheMissingError:
            notes.append(f"The cache at {cache} is gone: whether it held these records is unknown.")
    return Text(
        held_out=held_out,
        source=", ".join(Path(path).name for path in paths),
        notes=tuple(notes),
    )


def _tokenizer(run: FinishedRun) -> ChatTokenizer:
    student = run.recipe.student
    return ChatTokenizer.load(
        str(run.student),  # whose own code, if it has any, is not run to look at it
        mask_token=student.mask_token,
        mask_id=student.mask_id,
    )
