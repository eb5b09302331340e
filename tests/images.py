"""docker/rehearse.py as a module, and what the tests of the images read with it."""

import importlib.util
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILES = {name: ROOT / "docker" / f"{name}.Dockerfile" for name in ("student", "teacher")}
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]

_spec = importlib.util.spec_from_file_location("rehearse", ROOT / "docker" / "rehearse.py")
assert _spec is not None
rehearse = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rehearse)
