r"""Performs a Dockerfile's install steps without Docker, and runs the image's stage on tiny models.

    python docker/rehearse.py student
    python docker/rehearse.py teacher --python python3.12 --build-arg ENGINE=remote-code \
        --skip flash-attn

Files come from the Dockerfile's own COPY and .dockerignore, steps from its RUN; they go into a new
virtual environment, and a folder for /src. What asks for root (apt-get, useradd) is not performed,
and is listed. The last line is JSON.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from string import Template

from docker.utils import exclude_paths  # what `docker build` itself would send

from tests.tiny_recipe import write_recipe_file

ROOT = Path(__file__).parents[1]
PERFORMED = {"pip", "python", "touch"}
_USER_ERROR = 2


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its arguments on one line."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def context(dockerfile: Path) -> set[str]:
    """The files that a build of it may copy, relative to the repository's root."""
    patterns = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().splitlines()
    return set(exclude_paths(str(ROOT), [line for line in patterns if line[:1] not in ("", "#")]))


def copied(arguments: str, variables: dict[str, str], files: set[str]) -> list[tuple[str, str]]:
    """What one COPY copies: each file, and where it comes to lie."""
    *sources, target = shlex.split(Template(arguments).substitute(variables))
    pairs: list[tuple[str, str]] = []
    for source in sources:
        inside = [file for file in files if file.startswith(f"{source}/")]
        pairs += [(file, file.replace(source, target, 1)) for file in inside]
        if not inside:
            pairs.append((source, f"{target}/{Path(source).name}"))
    return [(file, place) for file, place in pairs if file in files and (ROOT / file).is_file()]


def copy(arguments: str, variables: dict[str, str], files: set[str], source: Path) -> None:
    """Performs one COPY into the folder for /src."""
    for file, place in copied(arguments, variables, files):
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, source / place)


def is_performed(command: str) -> bool:
    """Whether a RUN can be performed by someone who is not root."""
    parts = re.split(r"&&", command)
    return all(part.split()[0] in PERFORMED for part in parts)


def build(
    dockerfile: Path, place: Path, *, python: str, arguments: dict[str, str], skip: str
) -> list[str]:
    """Makes `place`/src and `place`/venv as the image has them; the steps that it left out."""
    subprocess.run([python, "-m", "venv", str(place / "venv")], check=True)
    source, files = place / "src", context(dockerfile)
    source.mkdir()
    variables: dict[str, str] = {}
    left_out: list[str] = []
    for name, rest in instructions(dockerfile):
        if name == "ARG":
            variable, _, default = rest.partition("=")
            variables[variable] = arguments.get(variable, default)
        elif name == "COPY":
            copy(rest, variables, files, source)
        elif name == "RUN":
            command = re.sub(r"^(--mount=\S+\s+)+", "", rest.strip())
            if not is_performed(command) or (skip and re.search(skip, command)):
                left_out.append(" ".join(command.split()))
            else:
                print(f"RUN {' '.join(command.split())}", flush=True)
                subprocess.run(
                    ["sh", "-ec", command],
                    cwd=source,
                    env=environment(place) | variables,
                    check=True,
                )
    return left_out


def environment(place: Path) -> dict[str, str]:
    """This machine's, with the image's commands first and nothing of this checkout."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "PREFECT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"PATH": f"{place / 'venv' / 'bin'}:{os.environ['PATH']}", "HOME": str(place)}


def run(place: Path, *command: str, code: int = 0) -> str:
    """A command of the image, as the image's user runs it; what it said."""
    print(f"$ {' '.join(command)}", flush=True)
    done = subprocess.run(
        command, cwd=place / "home", env=environment(place), capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    print(said[-3000:], flush=True)
    if done.returncode != code:
        raise SystemExit(f"{command}: expected exit code {code}, got {done.returncode}")
    return said


def run_stage(image: str, place: Path, folder: Path) -> float:
    """The image's stage on tiny models, with Prefect; seconds. The student's image has no other."""
    models = folder / "models"
    # By the image's own transformers: what a newer one saves, an older one cannot read.
    program = (
        f"import tests.tiny_recipe as t, pathlib; t.save_models(pathlib.Path({str(models)!r}))"
    )
    run(place, "env", f"PYTHONPATH={ROOT}", "python", "-c", program)
    recipe = write_recipe_file(folder / "tiny", models)
    if image == "student":
        here = [sys.executable, "-c", "from pipeline.cli import main; main()"]
        stage_1 = [*here, "teacher-cache", str(recipe), "--no-prefect"]
        subprocess.run(stage_1, cwd=ROOT, check=True)
        run(place, "tidecache", "teacher-cache", str(recipe), code=_USER_ERROR)
    began = time.monotonic()
    stage = {"student": "student-train", "teacher": "teacher-cache"}[image]
    run(place, "tidecache", stage, str(recipe))
    return time.monotonic() - began


def main() -> None:
    """Rehearses one image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", choices=("student", "teacher"))
    parser.add_argument("--python", default=sys.executable, help="As new as the image's own.")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--skip", default="", metavar="REGEX", help="Steps to leave out.")
    asked = parser.parse_args()
    dockerfile = ROOT / "docker" / f"{asked.image}.Dockerfile"
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        place = Path(name)
        (place / "home").mkdir()
        began = time.monotonic()
        left_out = build(
            dockerfile,
            place,
            python=asked.python,
            arguments=dict(argument.split("=", 1) for argument in asked.build_arg),
            skip=asked.skip,
        )
        built = time.monotonic() - began
        packages = json.loads(run(place, "pip", "list", "--format", "json").splitlines()[0])
        seconds = run_stage(asked.image, place, place)
        size = subprocess.run(
            ["du", "-sm", str(place / "venv"), str(place / "src")], capture_output=True, text=True
        )
        version = run(place, "python", "-c", "import platform; print(platform.python_version())")
        result = {
            "image": asked.image,
            "python": version.strip(),
            "packages": len(packages),
            "mib": sum(int(line.split()[0]) for line in size.stdout.splitlines()),
            "build_s": round(built),
            "stage_s": round(seconds),
            "not_performed": left_out,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
