"""One run after the other: a failed one does not cost the others, and a stop keeps what is done."""

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.cache.reader import CacheReader
from pipeline.sweep.expand import SweepRun
from pipeline.train.check import check_cache
from storage_schemas.errors import CacheIdentityError, TidecacheError

_LOG = logging.getLogger("tidecache")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEnd:
    """failures: run -> why it failed. stopped_in: the run that a stop kept from its end."""

    failures: dict[str, str]
    stopped_in: str | None = None


def check_runs(runs: Sequence[SweepRun]) -> None:
    """Whether the cache is there, and suits every run; what does not is named in one error."""
    reader = CacheReader.open(runs[0].recipe.cache.path)
    faults: dict[str, list[str]] = {}
    for run in runs:
        try:
            check_cache(reader, run.recipe)
        except TidecacheError as error:
            head, *lines = str(error).split("\n  ")
            for line in lines or [head]:
                faults.setdefault(line, []).append(run.name)
    if faults:
        lines = [f"{', '.join(names)}: {line}" for line, names in faults.items()]
        head = f"{reader.address}: these students cannot be trained from this cache:"
        raise CacheIdentityError("\n  ".join([head, *lines]))


def run_sweep(
    runs: Iterable[SweepRun],
    train: Callable[[SweepRun], bool],
    *,
    should_stop: Callable[[], bool],
    on_run: Callable[[SweepRun], None],
) -> SweepEnd:
    """Every run in turn; `train` tells whether it came to its end, now or in an earlier sweep."""
    failures: dict[str, str] = {}
    for run in runs:
        if should_stop():
            return SweepEnd(failures=failures, stopped_in=run.name)
        on_run(run)
        try:
            is_complete = train(run)
        except TidecacheError as error:
            failures[run.name] = str(error)
            _LOG.error("run %s failed: %s", run.name, error)
        except Exception as error:  # whatever it is, the other runs are still worth having
            failures[run.name] = f"{type(error).__name__}: {error}"
            _LOG.exception("run %s failed", run.name)
        else:
            if not is_complete:
                return SweepEnd(failures=failures, stopped_in=run.name)
        gc.collect()  # a student whose error is gone would still hold its memory
    return SweepEnd(failures=failures)
