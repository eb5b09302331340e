"""Fair comparisons: same start, steps and views, seeds of their own, a control tuned alike."""

import pytest

from pipeline.study.questions import CHOSEN, RATES, TRIED, questions


def test_within_a_question_about_objectives_only_objective_and_its_settings_differ():
    for question in questions():
        if not question.name.startswith("objectives"):
            continue
        assert len(question.seeds) >= 5
        arms = list(question.arms.values())
        assert {arm.steps for arm in arms} == {arms[0].steps}
        assert {(arm.cache.records, arm.cache.views, arm.cache.targets) for arm in arms} == {
            (arms[0].cache.records, arms[0].cache.views, arms[0].cache.targets)
        }
        assert question.arms[question.control].objective == "masked_nll"


def test_the_tuning_shares_no_seed_and_no_file_with_the_rest():
    tuned = [q for q in questions() if q.split == "validation"]
    judged = [q for q in questions() if q.split == "test"]
    assert {s for q in tuned for s in q.seeds}.isdisjoint(s for q in judged for s in q.seeds)


@pytest.mark.parametrize("pipeline", ["A", "B"])
def test_what_was_chosen_was_tried_and_the_control_at_every_rate(pipeline: str):
    tried = {(setting.objective, setting.label) for setting in TRIED[pipeline]}
    for objective, (label, rate) in CHOSEN[pipeline].items():
        assert (objective, label) in tried
        assert rate in RATES
    (tuning,) = [q for q in questions() if q.name == f"tuning {pipeline}"]
    controls = [arm for arm in tuning.arms.values() if arm.objective == "masked_nll"]
    assert {arm.learning_rate for arm in controls} == set(RATES)


def test_every_run_of_a_question_has_a_name_of_its_own():
    for question in questions():
        names = [run.key for _, run in question.runs()]
        assert len(names) == len(set(names)), question.name
