import signal
from pathlib import Path

import pytest
from prefect.exceptions import CancelledRun

import pipeline.student_train
from flows.student_train import student_train
from pipeline.config.recipe import load_recipe
from pipeline.teacher_cache import run_teacher_cache
from pipeline.train.summary import TrainSummary
from storage_schemas.errors import CacheMissingError

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_student_is_trained_from_the_cache_alone(write_recipe, monkeypatch):
    recipe = write_recipe()
    run_teacher_cache(load_recipe(recipe))
    monkeypatch.setattr(
        "pipeline.teacher.transformers_backend.TransformersBackend.load", lambda *_, **__: 1 / 0
    )
    result = student_train(str(recipe))
    assert result["steps"] == 2
    assert result["is_complete"]
    assert Path(result["output"], "model.safetensors").exists()
    assert student_train(str(recipe)) == result  # finished: it is not trained twice


def test_without_a_cache_the_error_comes_out_as_itself(write_recipe, caplog):
    with pytest.raises(CacheMissingError, match="expected a cache, got no"):
        student_train(str(write_recipe()))
    assert [record for record in caplog.records if record.exc_info] == []


def test_metrics_go_to_the_runs_log_and_sigterm_stops_the_training(
    write_recipe, monkeypatch, caplog
):
    def run(recipe, *, on_log, should_stop, shows_progress):
        assert not should_stop()
        on_log({"step": 7, "loss": 1.25})
        signal.raise_signal(signal.SIGTERM)
        return TrainSummary(
            output=Path("out"), steps=7, seconds=1.0, is_complete=not should_stop(), metrics={}
        )

    monkeypatch.setattr(pipeline.student_train, "run_student_train", run)
    with pytest.raises(CancelledRun, match="stopped at step 7; run again to go on"):
        student_train(str(write_recipe()))
    assert "step 7  loss 1.25" in caplog.text
