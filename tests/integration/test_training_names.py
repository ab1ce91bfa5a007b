"""Names of trainings on a real MLflow: every form that is printed leads to the training, however many runs there are."""

from dataclasses import replace
from pathlib import Path

import pytest
from celebdit_testing.registered import registry_context

from components.errors import BadInput
from components.tracking import connection
from components.tracking.client import Tracking
from components.tracking.tags import TAG_RUN_KEY
from components.tracking.training_names import find_run_key, find_training_run, require_run_key
from pipeline.services import Endpoints

KEYS = [f"{number:04x}{'ab' * 6}" for number in range(1, 6)]


@pytest.fixture
def tracking(endpoints: Endpoints, tmp_path: Path) -> Tracking:
    """Five trainings, each of a pipeline run of its own, in an experiment of their own."""
    settings = registry_context(endpoints, tmp_path).settings
    for number, key in enumerate(KEYS):
        client = Tracking(replace(settings, experiment=f"names {tmp_path.name}", run_id=f"smoke-{number}"))
        client.step_run("train", run_key=key)
        client.set_tags(client.pipeline_run().info.run_id, {TAG_RUN_KEY: key})
    return client


def test_a_training_has_the_same_names_for_every_command(tracking: Tracking) -> None:
    training = find_training_run(KEYS[2], tracking)
    parent = training.data.tags["mlflow.parentRunId"]
    for name in (KEYS[2], KEYS[2][:4], "smoke-2", training.info.run_id, parent):
        assert require_run_key(name, tracking) == KEYS[2], name
        assert find_training_run(name, tracking).info.run_id == training.info.run_id


def test_a_name_of_nothing_is_refused_with_the_keys_that_exist(tracking: Tracking) -> None:
    assert find_run_key("ffff", tracking) is None
    for name in ("ffff", "smoke-9", "f" * 32, "../runs", "a' or '1'='1", "f" * 16):
        with pytest.raises(BadInput, match="has no training run") as refused:
            find_training_run(name, tracking)
        assert KEYS[0] in str(refused.value.hint)


def test_more_trainings_than_one_answer_of_mlflow_holds_are_all_searched(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest would not be found, or a prefix that begins two keys would silently name the newer one."""
    monkeypatch.setattr(connection, "_PAGE_RUNS", 2)
    assert require_run_key(KEYS[0][:4], tracking) == KEYS[0]
    tracking.step_run("train", run_key=KEYS[0][:4] + "cd" * 6)
    with pytest.raises(BadInput, match="begins 2 run keys"):
        require_run_key(KEYS[0][:4], tracking)
