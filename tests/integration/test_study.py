"""One run of the study from records to a row, and a stopped study goes on where it was."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.demo.corpus import ASSETS
from pipeline.study import run as study_run
from pipeline.study.arms import Arm, CacheArm, Question
from pipeline.study.publish import answers
from pipeline.study.results import collect
from pipeline.study.run import run_one, student_folder


def _question() -> Question:
    cache = CacheArm(pipeline="B", records=16, views=1, targets="top 8 even")
    arms = {
        label: Arm(cache=cache, objective=objective, learning_rate=1e-3, steps=1)
        for label, objective in (("CE only", "masked_nll"), ("KL", "forward_kl"))
    }
    return Question(
        name="objectives B", asks="?", split="test", seeds=(7,), control="CE only", arms=arms
    )


def test_two_runs_share_a_cache_and_become_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # the bundled student is a start whose training is finished, as the study's own will be
    shutil.copytree(ASSETS / "student", tmp_path / "start")
    training = tmp_path / "start" / "training.json"
    assert len(json.loads(training.read_text())["phases"]) == 2
    question = _question()
    rows = {label: run_one(run, tmp_path) for label, run in question.runs()}
    assert len(list((tmp_path / "caches").glob("*.json"))) == 1
    assert rows["KL"]["steps"] == 1
    assert rows["KL"]["cache"]["digest"] == rows["CE only"]["cache"]["digest"]
    assert rows["KL"]["metrics"]["forward_kl"] > 0
    assert rows["KL"]["scores"]["bound_R"] != rows["CE only"]["scores"]["bound_R"]
    (_, first), _ = question.runs()
    assert (student_folder(first, tmp_path) / "final" / "model.safetensors").exists()

    runs, records = collect([question], tmp_path)
    assert runs["label"].to_list() == ["CE only", "KL"]
    assert len(records) == len(rows["KL"]["scores"]["bound_R"])
    found = answers(runs, records)["objectives B"]["KL"]
    bounds = dict(zip(runs["label"], runs["bound"], strict=True))
    assert found["over_seeds"]["mean"] == pytest.approx(bounds["CE only"] - bounds["KL"])
    assert found["over_files"]["mean"] == pytest.approx(found["over_seeds"]["mean"], abs=1e-5)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(study_run, "run_student_train", refuse)
    assert run_one(first, tmp_path) == json.loads(json.dumps(rows["CE only"]))
