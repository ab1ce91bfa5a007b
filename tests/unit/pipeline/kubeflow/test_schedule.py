"""Schedules: created once, found on every page of the list, deleted without creating anything."""

import copy

import pytest
from celebdit_testing.kfp_server import FakeKfp, Fault
from celebdit_testing.submissions import OPTIONS, connect, run_cli

from components.environment import KFP_ENDPOINT
from components.errors import BadInput
from pipeline.config import RunConfig
from pipeline.submit import Timing, schedule, unschedule


@pytest.mark.parametrize("timing", [Timing(cron="0 0 3 * * 1"), Timing(every_s=3600)])
def test_a_schedule_is_made_once_and_deleted(server: FakeKfp, config: RunConfig, timing: Timing) -> None:
    server.faults.append(Fault("recurring_run_service_create_recurring_run", "lost"))
    first, _ = schedule(config, OPTIONS, connect(server), experiment="faces", timing=timing)
    second, is_new = schedule(config, OPTIONS, connect(server), experiment="faces", timing=timing)
    assert not is_new
    assert list(server.recurring) == [first.recurring_run_id] == [second.recurring_run_id]
    (entry,) = server.recurring.values()
    assert (entry.mode, entry.max_concurrency, entry.no_catchup) == ("ENABLE", "1", True)
    assert unschedule("smoke", connect(server), experiment="faces", timing=timing) == [first.display_name]
    assert not server.recurring
    with pytest.raises(BadInput, match="has no schedule"):
        unschedule("smoke", connect(server), experiment="faces", timing=timing)


def test_schedules_whose_expressions_share_a_name_are_told_apart(server: FakeKfp, config: RunConfig) -> None:
    """A name has letters and digits alone: every fifth minute and the minutes 0 and 5 differ by a sign."""
    kubeflow = connect(server)
    timings = [Timing(cron=cron) for cron in ("0 0/5 3 * * *", "0 0,5 3 * * *", "0 0-5 3 * * *")]
    assert len({timing.name for timing in timings}) == 1
    made = [schedule(config, OPTIONS, kubeflow, experiment="faces", timing=timing) for timing in timings]
    assert [is_new for _, is_new in made] == [True] * 3
    assert not schedule(config, OPTIONS, kubeflow, experiment="faces", timing=Timing(cron="0  0,5 3 * * * "))[1]
    unschedule("smoke", kubeflow, experiment="faces", timing=timings[1])
    assert sorted(entry.trigger.cron_schedule.cron for entry in server.recurring.values()) == ["0 0-5 3 * * *", "0 0/5 3 * * *"]


def test_all_schedules_of_a_timing_are_deleted(server: FakeKfp, config: RunConfig) -> None:
    """Two clients that schedule at once make two of the same name: Kubeflow Pipelines takes both."""
    timing, kubeflow = Timing(every_s=3600), connect(server)
    first, _ = schedule(config, OPTIONS, kubeflow, experiment="faces", timing=timing)
    twin = copy.copy(first)
    twin.recurring_run_id = "another"
    server.recurring["another"] = twin
    assert unschedule("smoke", kubeflow, experiment="faces", timing=timing) == [first.display_name] * 2
    assert not server.recurring


def test_schedules_beyond_the_first_page_are_found(server: FakeKfp, config: RunConfig) -> None:
    """The server gives a hundred at a time, and the newest last."""
    kubeflow = connect(server)
    hour = Timing(every_s=3600)
    first, _ = schedule(config, OPTIONS, kubeflow, experiment="faces", timing=hour)
    (version,) = (listed.pipeline_version_reference for listed in server.recurring.values())
    experiment_id = kubeflow.experiment("faces")
    for number in range(230):
        entry = server.recurring_run_service_create_recurring_run(
            type(first)(
                display_name=f"other-{number}",
                experiment_id=experiment_id,
                pipeline_version_reference=version,
                trigger=first.trigger,
            )
        )
    last, _ = schedule(config, OPTIONS, kubeflow, experiment="faces", timing=Timing(every_s=7200))
    assert [listed.display_name for listed in kubeflow.schedules(experiment_id)][-2:] == [entry.display_name, last.display_name]
    assert len(kubeflow.schedules(experiment_id)) == 232
    assert schedule(config, OPTIONS, kubeflow, experiment="faces", timing=Timing(every_s=7200))[1] is False
    assert unschedule("smoke", kubeflow, experiment="faces", timing=Timing(every_s=7200)) == [last.display_name]
    assert last.recurring_run_id not in server.recurring
    assert len(server.recurring) == 231


def test_deleting_a_schedule_makes_no_experiment_to_look_in(
    server: FakeKfp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KFP_ENDPOINT, server.url)
    code, _, err = run_cli(capsys, "schedule", "smoke", "--every", "3600", "--delete", "--experiment", "facse")
    assert code == 2
    assert "experiment facse has no schedule of smoke with this timing" in err
    assert not server.experiments
    assert not [name for name in server.requests if "create" in name or "upload" in name]
