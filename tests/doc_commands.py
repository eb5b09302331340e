"""Every command and every block of Python in the documentation, run where their files exist.

`run_doc_commands()` makes a folder with the quick demo and its real models, goes through the pages
in order, and says of each command how it was tried. A command that is neither run nor listed in
`INSTEAD` with a reason is a failure: a page cannot gain one that nobody tries.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from markdown_it import MarkdownIt
from warm_command import WarmCommand

from pipeline.demo.recipes import with_values

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
SHELL, PYTHON = "sh", "python"
LANGUAGES = {SHELL, PYTHON, "toml", "json", "yaml", "text"}
PROGRAMS = {
    *("tidecache", "make", "pip", "python", "torchrun", "tensorboard", "prefect", "docker"),
    *("dask", "ray", "source", "export", "git", "cat", "head"),
}
_PLAIN = ("tidecache ", "cat > ", "head ")
_PREFECT = "prefect "  # in the repository's root, as docs/operations.md says
_LIMIT_S = 240

# What stands for a reader's own things, in whole words.
NAMES = {
    "RECIPE": "recipe.toml",
    "CACHE": "demo-output/caches/shared",
    "SWEEP.toml": "sweep.toml",
    "OUTPUT/runs": "demo-output/students/shared/runs",
    "CHECKPOINT": "demo-output/students/shared/final",
    "--fidelity N": "--fidelity 2",
    "--record ID": '--record "logging/handlers.py::BaseRotatingHandler.rotate"',
}
# What a block of Python is given.
GIVEN = 'cache = "demo-output/caches/shared"\nrun = "runs/mine"\n'

_HELD_OUT = """
[held_out]
every_steps = 2
records = { type = "files", paths = ["data/held-out.jsonl"], id_field = "id" }
"""

# One Prefect server for all commands, so that none starts its own; it ends with its input.
_SERVER = """
import os, sys
from pathlib import Path
from flows.local import ensure_server
ensure_server(Path(sys.argv[1], ".prefect"))
print(os.environ["PREFECT_API_URL"], flush=True)
sys.stdin.read()
"""

How = Literal["run", "replaced", "not run"]


class Instead(NamedTuple):
    """What is done where a command cannot be run as it stands: `command`, or nothing; and why."""

    why: str
    command: str | None = None


_NAMED = "the tables and prose name it; the blocks have it in full"
_HOURS = "it takes hours"
_BENCH = "a benchmark of minutes to an hour"
_TORCHRUN = (
    "torchrun --nnodes 1 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0 "
    "-m pipeline.launch demo-output/recipes/cross.toml --set train.accumulation=2 "
    "--set train.output=demo-output/students/two --set train.max_steps=1"
)
# A command, or what it begins with where an ellipsis ends it.
INSTEAD = {
    "make demo": Instead("the full demo", "tidecache demo --quick --output demo-output"),
    "tidecache demo": Instead("the full demo", "tidecache demo --quick --output demo-output"),
    "make test": Instead("it is what runs this"),
    "make test-vllm": Instead("it needs an environment of its own"),
    "make format": Instead("it would change files"),
    "make check": Instead(
        "all but the type checks, which take minutes",
        "cd ROOT && ruff format --check . && ruff check . && lint-imports",
    ),
    "make study": Instead(_HOURS),
    "make train-models": Instead(_HOURS),
    "make bench-demo": Instead(_BENCH),
    "make bench-cache": Instead(_BENCH),
    "make bench-student": Instead(_BENCH),
    "make bench-student-gpu": Instead("it needs a GPU"),
    "make bench-sampler": Instead(_BENCH),
    "make bench-teacher": Instead("it needs vLLM"),
    "make bench-operations": Instead("it runs these commands itself"),
    "make bench-evidence": Instead("tests/unit/study/test_page.py checks the same"),
    "source .venv/bin/activate": Instead("the tests run in that environment"),
    "pip install …": Instead("nothing is installed in a test; the extra's name is checked"),
    "docker …": Instead("no Docker engine"),
    "make rehearse-student": Instead("it installs a gigabyte"),
    "make rehearse-teacher": Instead("it installs a gigabyte"),
    "dask worker …": Instead("tests/integration/flows/test_workers.py starts one"),
    "ray start": Instead("tests/integration/flows/test_workers.py runs on Ray"),
    "torchrun …": Instead("two hosts: here one, with two processes", _TORCHRUN),
    "tensorboard …": Instead(
        "it serves until it is stopped", "tensorboard --inspect --logdir OUTPUT/runs"
    ),
    "tidecache teacher-cache RECIPE": Instead(
        _NAMED, "tidecache teacher-cache demo-output/recipes/cross.toml --set noise.views=3"
    ),
    "tidecache student-train RECIPE": Instead(
        _NAMED,
        "tidecache student-train demo-output/recipes/cross.toml "
        "--set objective.type=calm --set train.output=demo-output/students/calm",
    ),
    "tidecache sweep SWEEP.toml": Instead(_NAMED, "tidecache sweep sweep.toml"),
    "tidecache plan RECIPE": Instead(_NAMED, "tidecache plan recipe.toml"),
    "tidecache generate CHECKPOINT": Instead(
        _NAMED, 'tidecache generate CHECKPOINT --prompt "def clamp(value, low, high):"'
    ),
    "tidecache evaluate CHECKPOINT": Instead(
        _NAMED,
        "tidecache evaluate CHECKPOINT --records demo-output/records/held_out.jsonl "
        "--length 256 --draws 4 --output scores.json",
    ),
    "tidecache report RUN...": Instead(
        _NAMED,
        "tidecache report demo-output/students/* "
        "--records demo-output/records/held_out.jsonl --output report",
    ),
    "tidecache inspect CACHE": Instead(_NAMED, "tidecache inspect CACHE"),
    "tidecache verify CACHE": Instead(_NAMED, "tidecache verify CACHE --fidelity 2"),
    "tidecache verify CACHE --fidelity 50": Instead(
        "the quick demo has fewer views", "tidecache verify CACHE --fidelity 2"
    ),
    "export PREFECT_API_URL=…": Instead("a server of these tests runs, and is named"),
    "export TIDECACHE_RECIPE=…": Instead("set for all commands, with the paths that are here"),
    "prefect flow-run cancel ID": Instead(
        "tests/integration/flows/test_deployments.py cancels one", "prefect flow-run cancel --help"
    ),
    "prefect server start": Instead("a server of these tests runs"),
    "python -m flows.pool_worker …": Instead(
        "tests/integration/flows/test_pool_worker.py runs and stops one",
        "prefect worker start --pool tidecache --limit 1 --run-once",
    ),
    "prefect worker start …": Instead(
        "it works until it is stopped; tests/integration/flows/test_deployments.py runs one",
        "prefect worker start --pool tidecache --limit 1 --run-once",
    ),
    "tidecache serve …": Instead(
        "tests/integration/flows/test_serve.py serves and waits for a schedule",
        "tidecache serve --help",
    ),
    "tidecache evaluate demo-output/students/shared/final --tasks local --allow-code-execution": (
        Instead(
            "two questions a task are enough",
            "tidecache evaluate demo-output/students/shared/final --tasks local "
            "--allow-code-execution --limit 2",
        )
    ),
    "tidecache evaluate runs/mine/final --tasks paper …": Instead(
        "the benchmarks come from the Hub; tests/unit/benchmarks builds their tasks"
    ),
    "tidecache teacher-cache RECIPE --set teacher.revision=…": Instead(
        "it needs the published weights; loading without a revision is tests/unit/config's"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line of a page, without its line breaks, or a block of Python."""

    page: str
    line: int
    text: str
    is_python: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command was tried, and what came of it."""

    page: str
    command: str
    status: How
    ok: bool
    detail: str


def commands_of(page: str) -> Iterator[Command]:
    """What a page tells its reader to type, in blocks and in prose."""
    for token in MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text("utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "fence" and token.info == SHELL:
            for text in split_commands(token.content):
                yield Command(page=page, line=line, text=text)
        elif token.type == "fence" and token.info == PYTHON:
            yield Command(page=page, line=line, text=token.content, is_python=True)
        for child in token.children or ():
            if child.type == "code_inline" and _is_command(child.content):
                yield Command(page=page, line=line, text=child.content)


def _is_command(text: str) -> bool:
    """Two words at least, and not a command's bare name in prose, such as `tidecache verify`."""
    program, _, rest = text.partition(" ")
    is_name = program == "tidecache" and re.fullmatch(r"[a-z-]+( --[a-z-]+)?", rest)
    return program in PROGRAMS and bool(rest) and (not is_name or rest == "demo")


def split_commands(block: str) -> Iterator[str]:
    """A block's commands: continued lines joined, comments off, a here-document left as it is."""
    lines = iter(block.splitlines())
    for line in lines:
        text = line
        while text.endswith("\\"):
            text = text[:-1].rstrip() + " " + next(lines).strip()
        if end := re.search(r"<<'(\w+)'", text):
            while (more := next(lines)) != end[1]:
                text += "\n" + more
            yield f"{text}\n{end[1]}"
        elif text := re.sub(r"(^|\s+)#.*", "", text).strip():
            yield text


def instead_of(text: str) -> Instead | None:
    """The entry of `INSTEAD` for a command."""
    if entry := INSTEAD.get(text):
        return entry
    prefixes = (key for key in INSTEAD if key.endswith("…") and text.startswith(key[:-1].rstrip()))
    return next((INSTEAD[key] for key in prefixes), None)


class World:
    """A folder with what the pages name: the quick demo's output, prompts, a recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tried: dict[str, tuple[bool, str]] = {}
        self._warm: WarmCommand | None = None
        (folder / "prompts.jsonl").write_text('{"id": "a", "prompt": "def add(a, b):"}\n')
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
            "TIDECACHE_RECIPE": str(folder / "recipe.toml"),
            "TIDECACHE_CACHE": str(folder / "caches/mine"),
        }

    def make(self) -> None:
        """The demo, and what stands for a reader's own data."""
        done, detail = self.shell("tidecache demo --quick --output demo-output")
        if not done:
            raise RuntimeError(f"expected the quick demo to run, got {detail}")
        made, data = self.folder / "demo-output", self.folder / "data"
        data.mkdir()
        shutil.copy(made / "records/train.jsonl", data / "train.jsonl")
        shutil.copy(made / "records/held_out.jsonl", data / "held-out.jsonl")
        recipe = with_values(
            (made / "recipes/shared.toml").read_text("utf-8"),
            {
                "records.paths": ["data/train.jsonl"],
                "cache.path": "caches/mine",
                "train.output": "runs/mine",
            },
        )
        (self.folder / "recipe.toml").write_text(recipe + _HELD_OUT, "utf-8")

    def shell(self, text: str) -> tuple[bool, str]:
        """Whether a command ends well; how it ended. The same command is run once."""
        if text not in self._tried:
            is_warm = self._warm is not None and text.startswith("tidecache ")
            self._tried[text] = self._run_warm(text) if is_warm else self._run(["bash", "-c", text])
        return self._tried[text]

    def python(self, code: str) -> tuple[bool, str]:
        """The same of a block of Python."""
        return self._run([sys.executable, "-c", GIVEN + code])

    def warm_up(self) -> WarmCommand:
        """Commands of tidecache are forks from now on; whoever asks for it ends it."""
        self._warm = WarmCommand(self.environment)
        return self._warm

    def _run_warm(self, text: str) -> tuple[bool, str]:
        """The shell makes the words, so that quotes and globs are its own."""
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {text}"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")[1:-1]
        assert self._warm is not None, "asked only where it is"
        began, log = time.monotonic(), self.folder / "log.txt"
        code = self._warm(words, folder=self.folder, log=log, limit_s=_LIMIT_S)
        return _outcome(code, began, log.read_text("utf-8", errors="replace"))

    def _run(self, arguments: list[str]) -> tuple[bool, str]:
        began = time.monotonic()
        try:
            run = subprocess.run(
                arguments,
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=_LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            return False, f"still running after {_LIMIT_S} s"
        return _outcome(run.returncode, began, run.stdout + run.stderr)


def _outcome(code: int, began: float, printed: str) -> tuple[bool, str]:
    """Whether it ended well; the time it took, or the end of what it said."""
    if code == 0:
        return True, f"{time.monotonic() - began:.1f} s"
    return False, f"exit code {code}: " + "\n".join(printed.splitlines()[-15:])


def try_command(command: Command, world: World) -> Result:
    """Runs a command, or what stands for it."""

    def result(status: How, ok: bool, detail: str) -> Result:
        return Result(
            page=command.page,
            command=command.text if not command.is_python else command.text.splitlines()[0],
            status=status,
            ok=ok,
            detail=detail,
        )

    if command.is_python:
        return result("run", *world.python(command.text))
    entry = instead_of(command.text)
    if entry is None and command.text.startswith(_PREFECT):
        return result("run", *world.shell(f"cd {ROOT} && {command.text}"))
    if entry is None and not command.text.startswith(_PLAIN):
        return result("not run", False, "not run by any test: see INSTEAD in tests/doc_commands.py")
    if entry is None:
        return result("run", *world.shell(_with_names(command.text)))
    mistake = _mistake_in(command.text)
    if mistake is not None:
        return result("not run", False, mistake)
    if entry.command is None:
        return result("not run", True, entry.why)
    ok, detail = world.shell(_with_names(entry.command))
    return result("replaced", ok, f"{entry.why}; {detail}")


def _with_names(text: str) -> str:
    for name, value in {**NAMES, "ROOT": str(ROOT)}.items():
        text = re.sub(rf"(?<![\w./-]){re.escape(name)}(?!\w)", value, text)
    return text


def _mistake_in(text: str) -> str | None:
    """What can be told of a command without running it: a target that is not there, an extra."""
    if text.startswith("make "):
        target = ["make", "-n", *shlex.split(text, comments=True)[1:]]
        dry = subprocess.run(target, cwd=ROOT, capture_output=True, text=True, check=False)
        scripts = re.findall(r"tests/benchmarks/\w+\.py", dry.stdout)
        missing = [script for script in scripts if not (ROOT / script).exists()]
        return dry.stderr if dry.returncode else ", ".join(missing) or None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"tidecache\[([\w,-]+)\]", text)
    unknown = set(extras[1].split(",")) - project["optional-dependencies"].keys() if extras else ()
    return f"pyproject.toml has no extra {', '.join(unknown)}" if unknown else None


@contextmanager
def pages_world() -> Generator[World]:
    """The folder, with a Prefect server for as long as it is used."""
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        world = World(Path(folder))
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=world.environment,
        )
        try:
            assert server.stdout is not None, "its output is a pipe"
            world.environment["PREFECT_API_URL"] = server.stdout.readline().strip()
            world.make()
            warm = world.warm_up()
            try:
                yield world
            finally:
                warm.end()
        finally:
            server.communicate()


def all_commands() -> list[Command]:
    """Those of every page, in the pages' order."""
    return [command for page in PAGES if (ROOT / page).exists() for command in commands_of(page)]


def run_doc_commands() -> list[Result]:
    """Tries every command of every page."""
    with pages_world() as world:
        return [try_command(command, world) for command in all_commands()]


if __name__ == "__main__":
    with pages_world() as made:
        for one in all_commands():
            tried = try_command(one, made)
            mark = "ok  " if tried.ok else "FAIL"
            print(mark, tried.status, tried.page, tried.command, tried.detail, flush=True)
