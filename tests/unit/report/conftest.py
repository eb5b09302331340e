"""Real runs of stage 2 over a token cache (two seeds, held-out text) and over a chunk cache."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import lines, write_lines

from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache


@dataclass(frozen=True)
class Runs:
    """Folders of runs by name; two caches that they were trained on, one of unseen records."""

    folder: Path
    token_cache: str
    chunk_cache: str
    unseen_cache: str
    unseen: Path

    def of(self, *names: str) -> list[Path]:
        return [self.folder / name for name in names]


@pytest.fixture(scope="session")
def runs(tiny, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("report")
    rows = [line | {"id": f"unseen/{i}"} for i, line in enumerate(lines())]
    unseen = write_lines(folder / "unseen.jsonl", rows)
    unseen_records = {"type": "files", "paths": [str(unseen)], "id_field": "id"}
    caches = {
        name: run_teacher_cache(tiny.recipe(kind, folder / name, **settings)).address
        for name, kind, settings in (
            ("b", "b", {}),
            ("a", "a", {}),
            ("unseen", "b", {"records.paths": [str(unseen)]}),
        )
    }
    held_out = {"records": unseen_records, "max_records": 8, "every_steps": 2}

    def train(name: str, kind: str, **settings) -> None:
        run_student_train(
            tiny.recipe(
                kind,
                folder / name,
                **{
                    "cache.path": caches[kind],
                    "train.output": str(folder / name),
                    "train.max_steps": 3,
                    "train.learning_rate": 1e-2,
                    **settings,
                },
            ),
            shows_progress=False,
        )

    for seed in (0, 1):
        both = {"train.seed": seed, "held_out": held_out}
        train(f"ce-seed{seed}", "b", objective={"type": "masked_nll"}, **both)
        train(f"kl-seed{seed}", "b", objective={"type": "forward_kl"}, **both)
    train("kl-fast", "b", objective={"type": "forward_kl"}, **{"train.learning_rate": 2e-2})
    train("chunk-ce", "a", objective={"type": "masked_nll"})
    train("chunk-calm", "a", objective={"type": "calm", "temperature": 3.0})
    return Runs(
        folder=folder,
        token_cache=caches["b"],
        chunk_cache=caches["a"],
        unseen_cache=caches["unseen"],
        unseen=unseen,
    )


@pytest.fixture(scope="session")
def token_report(runs):
    """Two settings of two seeds each, looked at on a cache of unseen records."""
    from pipeline.report.gather import gather_report

    names = ("kl-seed0", "kl-seed1", "ce-seed1", "ce-seed0")
    return gather_report(runs.of(*names), caches=[runs.unseen_cache], max_views=16)


@pytest.fixture(scope="session")
def chunk_report(runs):
    """One seed, no held-out text, and the runs' own cache of chunks."""
    from pipeline.report.gather import gather_report

    return gather_report(runs.of("chunk-ce", "chunk-calm"))
