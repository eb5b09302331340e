"""Kills of stage 1, and damage to a finished cache: `python tests/benchmarks/cache_faults.py`.

`run_kills`: real processes that run stage 1 are ended by SIGKILL at chosen moments of each phase
(teacher pass, array write, rename, ledger append, and each of these while a killed run is being
resumed), then resumed to the end; the cache must equal that of an undisturbed run, byte for byte.

`run_flips`: single-bit flips, truncations, missing files and files exchanged with those of another
shard, for every array, table and record; verify must name where, and reading as training does must
refuse. A ledger entry that is missing is not among them: it is a shard that was not committed.

The last line of the output is one JSON object with the figures of both.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[1]))  # `tiny`
sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout, before what is installed

import numpy as np
import torch
from tiny import Tiny, files_of
from transformers.utils.logging import disable_progress_bar

import pipeline.cache.files
import pipeline.cache.local_store
from pipeline.cache.reader import CacheReader
from pipeline.cache.verify import verify_cache
from pipeline.config.recipe import Recipe, parse_recipe, resolved_json
from pipeline.stream.loader import CacheStream
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import TidecacheError
from storage_schemas.run_notes import FAILURES_FOLDER, WANTED_FILE

PHASES = ("teacher pass", "array write", "rename", "ledger append", "resume")
DAMAGES = ("flip", "truncation", "flip", "missing", "exchange")
_SKETCH = {"type": "sketch", "calibration_records": 4, "step": 0.2}
_OVERRIDES = {"targets.k": 4, "targets.tail": _SKETCH}
_CALL = "\n"  # a child says that it is at its moment, and waits for its end


# ------------------------------------------------------------------ kills

# phase -> moments of it: a wrapped function, and where in it the process stops
MOMENTS = {
    "teacher pass": ("before the teacher", "after the teacher"),
    "array write": ("within an array",),
    "rename": ("before a rename", "after a rename"),
    "ledger append": ("before a record", "after a record"),
    "clean-up": ("before the scratch of the dead is removed",),
}

_FIRST_KILLS = (
    ("after a rename", 2),
    ("within an array", 9),
    ("after a record", 2),
    ("before a record", 1),
    ("after the teacher", 1),
    ("before a rename", 3),
)


def run_kills(num_per_phase: int = 10) -> dict[str, Any]:
    """Kills, and what was lost: shards (the common files are one, the manifest too) that differ.

    A shard is lost if after a kill it is in the ledger and not whole, or is not what it was once
    the run is resumed; or if in the end it is not as in the undisturbed run.
    """
    with tempfile.TemporaryDirectory(prefix="cache-kills-") as folder, _Victims() as victims:
        trial = _Trial(Path(folder), victims)
        kills: Counter[str] = Counter()
        lost = 0
        for phase in PHASES[:-1]:
            for moment, call in trial.moments(phase, num_per_phase):
                lost += trial.run([(moment, call)])
                kills[phase] += 1
        again = [moment for moments in MOMENTS.values() for moment in moments]
        # a prime step through the pairs: each first and each second moment comes early
        pairs = list(product(_FIRST_KILLS, again))
        pairs = [pairs[7 * i % len(pairs)] for i in range(len(pairs))]
        for (moment, call), then in islice(cycle(pairs), num_per_phase):
            lost += trial.run([(moment, call), (then, 1)])
            kills["resume"] += 1  # the kill before it is not counted
    return {"kills": sum(kills.values()), "kills_by_phase": dict(kills), "lost": lost}


class _Trial:
    """One recipe, its undisturbed cache, and runs of it that are killed."""

    def __init__(self, folder: Path, victims: "_Victims") -> None:
        self._folder = folder
        self._victims = victims
        self._tiny = Tiny(folder)
        self._count = 0
        recipe = self._recipe()
        self._calls = victims.run(recipe, None)["calls"]
        self._undisturbed = files_of(Path(recipe.cache.path))
        assert self._undisturbed, "an undisturbed run makes a cache"

    def _recipe(self) -> Recipe:
        self._count += 1
        return self._tiny.recipe("b", self._folder / f"run-{self._count}", **_OVERRIDES)

    def moments(self, phase: str, count: int) -> list[tuple[str, int]]:
        """`count` moments of a phase, spread over all that an undisturbed run has of them."""
        every = [
            (moment, call)
            for moment in MOMENTS[phase]
            for call in range(1, self._calls[moment] + 1)
        ]
        return [every[i * len(every) // count % len(every)] for i in range(count)]

    def run(self, moments: list[tuple[str, int]]) -> int:
        """Kills at each moment in turn, resumes to the end; how many shards were lost."""
        recipe = self._recipe()
        cache = Path(recipe.cache.path)
        before: dict[str, bytes] = {}
        lost: set[str] = set()
        for moment in moments:
            assert self._victims.run(recipe, moment)["killed"], f"no kill at {moment}"
            lost |= _lost(before, files_of(cache))
            before |= _committed(cache)
            if (cache / "manifest.json").exists():
                lost |= {fault.where for fault in verify_cache(cache).faults}
        assert not self._victims.run(recipe, None)["killed"], "the last run comes to its end"
        after = files_of(cache)
        lost |= _lost(before, after) | _lost(self._undisturbed, after)
        lost |= {_unit(path) for path in after.keys() - self._undisturbed.keys()}
        if lost:
            print(f"lost at {moments}: {sorted(lost)}", file=sys.stderr)
        return len(lost)


def _committed(cache: Path) -> dict[str, bytes]:
    """The files that must never change again."""
    names = {path.stem for path in (cache / "ledger").glob("*.json")}
    has_manifest = (cache / "manifest.json").exists()
    return {
        path: data
        for path, data in files_of(cache).items()
        if (path.startswith(("common/", "manifest")) and has_manifest)
        or _unit(path).removeprefix("shard ") in names
    }


def _lost(wanted: dict[str, bytes], got: dict[str, bytes]) -> set[str]:
    return {_unit(path) for path, data in wanted.items() if got.get(path) != data}


def _unit(path: str) -> str:
    """The shard that a file belongs to, or what else it is of."""
    folder, _, rest = path.partition("/")
    if folder in ("shards", "ledger"):
        return f"shard {rest.partition('/')[0].removesuffix('.json')}"
    return folder


class _Victims:
    """A warm process that forks one child a run, so that none has to load torch anew."""

    def __enter__(self) -> "_Victims":
        self._server = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        assert self._server.stdout is not None
        self._server.stdout.close()

    def run(self, recipe: Recipe, moment: tuple[str, int] | None) -> dict[str, Any]:
        """Stage 1 in a process of its own, to its end or to the moment at which it is killed."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        job = {"recipe": json.loads(resolved_json(recipe)), "moment": moment}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _serve() -> None:
    """One job a line: a child for each, killed once it says that it is where it should be."""
    for line in sys.stdin:
        job = json.loads(line)
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(told)
            status = 1
            try:
                os.dup2(2, 1)
                _be_victim(job, tell)
                status = 0
            finally:
                os._exit(status)
        os.close(tell)
        with os.fdopen(told) as pipe:
            said = pipe.readline()  # empty once the child has ended
            if said == _CALL:
                os.kill(child, signal.SIGKILL)
        end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        killed = said == _CALL
        assert end == (-signal.SIGKILL if killed else 0), f"a child ended with {end}"
        calls = {} if killed else json.loads(said)
        print(json.dumps({"killed": killed, "calls": calls}), flush=True)


def _be_victim(job: dict[str, Any], tell: int) -> None:
    """Runs stage 1; at its moment it says so and waits. Else, in the end, how often each came."""
    torch.set_num_threads(1)
    calls: Counter[str] = Counter()

    def at(moment: str) -> None:
        calls[moment] += 1
        if job["moment"] == [moment, calls[moment]]:
            os.write(tell, _CALL.encode())
            while True:
                signal.pause()

    _hook(at)
    run_teacher_cache(parse_recipe(job["recipe"], where="victim"))
    os.write(tell, json.dumps(calls).encode() + b"\n")


def _hook(at: Callable[[str], None]) -> None:
    """Wraps, in this process alone, the functions that the moments are of."""
    hidden, rename, link = TransformersBackend._hidden, Path.rename, Path.hardlink_to
    write, end_scratch = pipeline.cache.files.write_durably, pipeline.cache.local_store._end_scratch

    def hooked_hidden(*arguments: Any) -> Any:
        at("before the teacher")
        result = hidden(*arguments)
        at("after the teacher")
        return result

    def hooked_rename(path: Path, target: Path) -> Path:
        at("before a rename")
        result = rename(path, target)
        at("after a rename")
        return result

    def hooked_link(path: Path, target: Path) -> None:
        at("before a record")
        link(path, target)
        at("after a record")

    def hooked_write(path: Path, data: bytes) -> None:
        if ".zarr/" not in str(path):
            write(path, data)
            return
        half = len(data) // 2
        with path.open("xb") as file:
            file.write(data[:half])
            file.flush()
            at("within an array")
            file.write(data[half:])
            file.flush()
            os.fsync(file.fileno())

    def hooked_end(scratch: Path, held: int) -> None:
        at("before the scratch of the dead is removed")
        end_scratch(scratch, held)

    TransformersBackend._hidden = hooked_hidden
    Path.rename, Path.hardlink_to = hooked_rename, hooked_link
    pipeline.cache.files.write_durably = hooked_write
    pipeline.cache.local_store._end_scratch = hooked_end


# ------------------------------------------------------------------ damage


def run_flips(num_per_target: int = 20) -> dict[str, Any]:
    """Damages, and how many were not told, with their place, by verify and by reading alike."""
    rng = np.random.default_rng(0)
    flips: Counter[str] = Counter()
    undetected = 0
    with tempfile.TemporaryDirectory(prefix="cache-flips-") as folder:
        for cache, only in _caches(Path(folder)):
            before = files_of(cache)
            for target, files in _targets(cache).items():
                if only and target not in only:
                    continue
                for number in range(num_per_target):
                    damaged = _damage(cache, files, DAMAGES[number % len(DAMAGES)], rng)
                    flips[target] += 1
                    undetected += not _is_detected(cache, target, damaged)
                    for path in damaged:
                        (cache / path).write_bytes(before[path])
            assert files_of(cache) == before, "every damage is undone"
            assert verify_cache(cache).is_sound, "what is undone is sound"
    return {"flips": sum(flips.values()), "flips_by_target": dict(flips), "undetected": undetected}


def _caches(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """A sketch's cache; and one with chunks of several tokens, for the array that only it fills."""
    tiny = Tiny(folder)
    for kind, overrides, only in (("b", _OVERRIDES, set()), ("a", {"targets.k": 4}, {"gold_logp"})):
        recipe = tiny.recipe(kind, folder / kind, **overrides)
        run_teacher_cache(recipe)
        assert verify_cache(recipe.cache.path).is_sound, "a cache as it was made is sound"
        yield Path(recipe.cache.path), only


def _targets(cache: Path) -> dict[str, list[str]]:
    """Each kind of file, or array, and the files that are of it."""
    targets: dict[str, list[str]] = {}
    for path in files_of(cache):
        parts = path.split("/")
        if parts[0] in (WANTED_FILE, FAILURES_FOLDER):
            continue  # a run's notes: no shard depends on them, and `status` checks their seals
        if parts[0] in ("manifest.json", "ledger"):
            name = parts[0]
        elif "tokens.zarr" in parts:
            name = parts[3] if len(parts) > 4 else "tokens.zarr"
        elif "basis.zarr" in parts:
            array = parts[parts.index("basis.zarr") + 1]
            name = f"basis {array}"
        else:
            name = "vocabulary" if "vocabulary" in parts else parts[-1]
        targets.setdefault(name, []).append(path)
    return targets


def _damage(cache: Path, files: list[str], kind: str, rng: np.random.Generator) -> list[str]:
    """Damages one file of these, or two by exchanging them; the paths of those that are other now.

    Where there is nothing to exchange it with, or a missing file is no damage, a bit is flipped.
    """
    path = files[int(rng.integers(len(files)))]
    data = (cache / path).read_bytes()
    if kind == "missing" and not path.startswith("ledger/"):
        (cache / path).unlink()
        return [path]
    if kind == "truncation":
        (cache / path).write_bytes(data[: int(rng.integers(len(data)))])
        return [path]
    if kind == "exchange":
        others = [other for other in _alike(cache, path) if (cache / other).read_bytes() != data]
        if others:
            other = others[int(rng.integers(len(others)))]
            (cache / path).write_bytes((cache / other).read_bytes())
            (cache / other).write_bytes(data)
            return [path, other]
    flipped = bytearray(data)
    flipped[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    (cache / path).write_bytes(flipped)
    return [path]


def _alike(cache: Path, path: str) -> list[str]:
    """The same file of another shard, array or side; for a record, other records."""
    if path == "manifest.json":
        return sorted(str(file.relative_to(cache)) for file in (cache / "ledger").iterdir())
    parts = path.split("/")
    same = {"shards": parts[2:], "ledger": [], "common": parts[-2:]}[parts[0]]
    return [
        other
        for other in files_of(cache)
        if other != path
        and other.startswith(f"{parts[0]}/")
        and other.split("/")[len(other.split("/")) - len(same) :] == same
    ]


def _is_detected(cache: Path, target: str, damaged: list[str]) -> bool:
    """Whether verify names every place, and reading refuses and names one of them."""
    places = [_place(path) for path in damaged]
    found = [f"{fault.where}: {fault.what}" for fault in verify_cache(cache).faults]
    missed = [place for place in places if not any(place in text for text in found)]
    refusal = _refusal(cache)
    is_refused = refusal is not None and any(place in refusal for place in places)
    if missed or not is_refused:
        print(f"{target}: {damaged} verify: {found} reading: {refusal}", file=sys.stderr)
    return not missed and is_refused


def _place(path: str) -> str:
    """What a message about a file must name: its shard, or else the file."""
    unit = _unit(path)
    return unit.removeprefix("shard ") if unit.startswith("shard ") else path


def _refusal(cache: Path) -> str | None:
    """What is said when it is opened and read once as training does; None if nothing is wrong."""
    try:
        reader = CacheReader.open(cache)
        basis = reader.read_basis()
        has_tokens = reader.identity.pipeline == "shared_tokenizer"
        stream = CacheStream(reader, batch_size=1, seed=0, has_tokens=has_tokens, basis=basis)
        for _ in islice(stream.batches(), stream.num_views):
            pass
    except TidecacheError as error:
        return str(error)
    return None


def main() -> None:
    """Both, or the server of victims."""
    parser = argparse.ArgumentParser(description="Kills and damage that a cache must withstand.")
    parser.add_argument("--kills", type=int, default=10, help="kills a phase")
    parser.add_argument("--flips", type=int, default=20, help="damages a kind of file or array")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    disable_progress_bar()
    if arguments.serve:
        _serve()
        return
    measured = run_kills(arguments.kills) | run_flips(arguments.flips)
    print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
