"""Progress bars of the demo: one a stage, each kept on the screen when it is done."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@runtime_checkable
class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars on one console; without a terminal, a line when each is done."""

    progress: Progress

    @property
    def console(self) -> Console:
        """Where else to print while bars are shown."""
        return self.progress.console

    @contextmanager
    def bar(self, title: str, unit: str) -> Generator[Advance]:
        """A bar that `advance(done, total, note)` moves; it counts in `unit`."""
        task = self.progress.add_task(title, total=None, unit=unit, note="")

        def advance(done: int, total: int, note: str = "", /) -> None:
            self.progress.update(task, completed=done, total=total, note=note)

        yield advance
        (state,) = [one for one in self.progress.tasks if one.id == task]
        if state.total is None:  # nothing was counted, because nothing was left to do
            self.progress.update(task, total=1, completed=1, unit="", note="found finished")
        self.progress.stop_task(task)
        if not self.console.is_terminal:
            self.console.print(f"{title}: {state.elapsed or 0.0:.0f} s {state.fields['note']}")


@contextmanager
def show_bars(console: Console) -> Generator[Bars]:
    """Bars on this console while the context lasts."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        refresh_per_second=4,
        disable=not console.is_terminal,
    )
    with progress:
        yield Bars(progress)
