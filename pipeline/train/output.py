"""Where a run of stage 2 writes: a local folder, mirrored whole file by file to an object store.

transformers.Trainer writes to local folders alone. So a run whose output is a URL works in a
scratch folder (under TMPDIR); what is finished there goes to the store, a checkpoint's
trainer_state.json after its other files: with it, the checkpoint is whole.
"""

import re
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.storage.address import is_remote, resolved_address
from pipeline.storage.connection import connect, talking_to
from pipeline.train.ranks import Ranks
from storage_schemas.errors import CacheWriteError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_LAST = "trainer_state.json"  # the Trainer, too, writes it last
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class TrainOutput:
    """The folder that a run works in, which is its output itself."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address

    def place_of(self, name: str) -> Path | str:
        """Where a finished file or folder is found after the run."""
        return self.folder / name

    def fetch(self, *names: str) -> None:
        """Brings those files into the folder that an earlier run has kept."""

    def fetch_checkpoint(self) -> None:
        """Brings the last whole checkpoint into the folder."""

    def keep(self, name: str) -> None:
        """Keeps a finished file, or a folder of them, for after the run."""

    def drop_checkpoints_but(self, names: Iterable[str]) -> None:
        """Removes the checkpoints that the Trainer has removed."""


class RemoteOutput(TrainOutput):
    """A scratch folder whose finished files are kept in an object store."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder, address)
        self._store: ObjectStore = connect(address)

    def place_of(self, name: str) -> str:
        """Its URL."""
        return f"{self.address}/{name}"

    def fetch(self, *names: str) -> None:
        """Those that are there."""
        for name in names:
            try:
                self._get(name)
            except FileNotFoundError:
                continue

    def fetch_checkpoint(self) -> None:
        """The one of the highest step among those whose last file is there."""
        checkpoints = self._checkpoints()
        whole = [name for name, files in checkpoints.items() if f"{name}/{_LAST}" in files]
        if whole:
            for path in checkpoints[max(whole, key=_step)]:
                self._get(path)

    def keep(self, name: str) -> None:
        """Uploads it; of a checkpoint, what makes it whole comes last."""
        source = self.folder / name
        files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
        for file in sorted(files, key=lambda file: (file.name == _LAST, file)):
            self._put(file)

    def drop_checkpoints_but(self, names: Iterable[str]) -> None:
        """Their last files first: without it a checkpoint is none."""
        kept = set(names)
        for name, files in self._checkpoints().items():
            if name not in kept:
                for path in sorted(files, key=lambda path: not path.endswith(f"/{_LAST}")):
                    with talking_to(self.address, is_writing=True):
                        self._store.delete(path)

    def _checkpoints(self) -> dict[str, list[str]]:
        """Checkpoint -> its files' paths."""
        found: dict[str, list[str]] = {}
        with talking_to(self.address):
            folders = self._store.list_with_delimiter()["common_prefixes"]
            for folder in folders:
                name = folder.rstrip("/")
                if _CHECKPOINT.fullmatch(name):
                    pages = self._store.list(name, chunk_size=1000)
                    found[name] = [meta["path"] for page in pages for meta in page]
        return found

    def _get(self, path: str) -> None:
        with talking_to(self.address):
            content = self._store.get(path)
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for block in content.stream():
                    file.write(block)

    def _put(self, file: Path) -> None:
        try:
            with talking_to(self.address, is_writing=True):
                self._store.put(file.relative_to(self.folder).as_posix(), file)
        except FileNotFoundError as error:
            raise CacheWriteError(
                f"train.output: expected the bucket of {self.address} to be there, got none; make "
                f"it first, or check its name"
            ) from error


class CheckpointKeeper(TrainerCallback):
    """Keeps each checkpoint as soon as the Trainer has written it."""

    def __init__(self, output: TrainOutput, ranks: Ranks) -> None:
        self._output = output
        self._ranks = ranks

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The new one is kept before an old one goes."""
        self._ranks.wait()  # each has files of its own in it
        if not self._ranks.is_first:
            return
        self._output.keep(f"checkpoint-{state.global_step}")
        there = [path.name for path in self._output.folder.glob("checkpoint-*")]
        self._output.drop_checkpoints_but(there)


@contextmanager
def open_output(address: str) -> Generator[TrainOutput]:
    """The output at an address; what tensorboard logged is kept when the run ends."""
    if not is_remote(address):
        yield TrainOutput(Path(address), address)
        return
    with tempfile.TemporaryDirectory(prefix="tidecache-") as folder:
        output = RemoteOutput(Path(folder), resolved_address(address))
        yield output
        if (output.folder / "runs").is_dir():
            output.keep("runs")


def _step(checkpoint: str) -> int:
    match = _CHECKPOINT.fullmatch(checkpoint)
    assert match is not None, "a checkpoint's name"
    return int(match[1])
