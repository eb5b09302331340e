"""prefect.yaml says what the code says, as far as a file can be read."""

from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger
from prefect.flows import Flow, load_flow_from_entrypoint

from flows.events import COMMITTED, match_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def deployed() -> dict[str, dict]:
    text = (ROOT / "flows" / "prefect.yaml").read_text()
    return {one["entrypoint"]: one for one in yaml.safe_load(text)["deployments"]}


def test_every_deployment_is_a_flow_with_these_parameters(deployed):
    assert len(deployed) == 2
    for entrypoint, fields in deployed.items():
        flow = load_flow_from_entrypoint(str(ROOT / entrypoint))
        assert isinstance(flow, Flow)
        assert fields["parameters"].keys() <= flow.parameters.properties.keys()
        assert set(flow.parameters.required) <= fields["parameters"].keys()


def test_the_schedule_and_the_trigger_are_what_the_code_says(deployed):
    (schedule,) = deployed["flows/teacher_cache.py:teacher_cache"]["schedules"]
    CronSchedule(**schedule)
    (fields,) = deployed["flows/student_train.py:student_train"]["triggers"]
    trigger = DeploymentEventTrigger(**fields)
    assert trigger.expect == {COMMITTED}
    assert fields["match"] == match_of("{{ $TIDECACHE_CACHE }}")
