"""Which runs belong together, and which compare."""

import shutil

import pytest

from pipeline.report.runs import read_runs
from pipeline.report.settings import make_settings
from storage_schemas.errors import RecipeError


def _settings(runs, *names, **options):
    settings, _ = make_settings(read_runs(runs.of(*names)), **options)
    return {setting.label: setting for setting in settings}


def test_runs_that_differ_in_their_seed_alone_are_one_setting_named_after_all(runs):
    settings = _settings(runs, "kl-seed1", "ce-seed0", "kl-seed0", "ce-seed1")
    assert list(settings) == ["ce", "kl"]  # the control first
    assert settings["kl"].seeds == (0, 1)
    assert settings["kl"].runs == tuple(map(str, runs.of("kl-seed0", "kl-seed1")))
    assert settings["kl"].num_views == 2
    assert settings["kl"].steps == (3,)


def test_the_control_is_the_run_of_cross_entropy_alone(runs):
    settings = _settings(runs, "kl-seed0", "ce-seed0")
    assert settings["ce-seed0"].is_control
    assert settings["kl-seed0"].control == settings["ce-seed0"].key
    assert settings["kl-seed0"].is_comparable


def test_a_run_that_differs_in_more_than_the_objective_is_not_comparable(runs):
    settings = _settings(runs, "kl-fast", "ce-seed0", "chunk-calm")
    assert settings["kl-fast"].differences == ("train.learning_rate: 0.02 against 0.01",)
    assert any(line.startswith("cache.digest: ") for line in settings["chunk-calm"].differences)
    assert not settings["kl-fast"].is_comparable


def test_each_setting_finds_the_control_that_is_nearest_to_it(runs):
    settings = _settings(runs, "chunk-ce", "ce-seed0", "chunk-calm", "kl-seed0")
    assert settings["chunk-calm"].control == settings["chunk-ce"].key
    assert settings["kl-seed0"].control == settings["ce-seed0"].key


def test_a_named_control_is_everyones(runs):
    settings = _settings(runs, "kl-seed0", "kl-fast", "ce-seed0", control=runs.of("kl-seed0")[0])
    key = settings["kl-seed0"].key
    assert [one.label for one in settings.values() if one.control == key] == [
        "kl-fast",
        "ce-seed0",
    ]


def test_details_are_what_differs(runs):
    settings = _settings(runs, "kl-seed0", "kl-fast")
    assert settings["kl-fast"].details == {"train.learning_rate": "0.02"}


def test_two_runs_of_one_setting_and_seed_are_refused(runs, tmp_path):
    copy = shutil.copytree(runs.of("kl-seed0")[0], tmp_path / "copy")
    with pytest.raises(RecipeError, match="seeds of their own"):
        make_settings(read_runs([*runs.of("kl-seed0"), copy]))


def test_a_run_named_twice_is_refused(runs):
    with pytest.raises(RecipeError, match="each run once"):
        read_runs(runs.of("kl-seed0", "kl-seed0"))


@pytest.mark.parametrize("file", ["run.json", "summary.json", "final/tidecache.json"])
def test_an_unfinished_run_is_refused_with_what_is_missing(runs, tmp_path, file):
    copy = shutil.copytree(runs.of("kl-seed0")[0], tmp_path / "copy")
    (copy / file).unlink()
    with pytest.raises(RecipeError, match=rf"expected a finished run .*{file.split('/')[-1]}"):
        read_runs([copy])
