"""Why a training on several nodes failed or does not begin, as the step tells it."""

from typing import Any

import pytest
from celebdit_testing.kube_server import FakeKube
from celebdit_testing.trainjobs import JOB, Start
from celebdit_testing.waiting import wait_until

from components.errors import CelebditError, DataRefused, TemporaryFailure
from components.train.trainjob.failures import first_failure, waiting_reason


def terminated(exit_code: int, at: str, message: str = "", reason: str = "Error") -> dict[str, Any]:
    state = {"terminated": {"exitCode": exit_code, "finishedAt": f"2026-01-01T00:00:{at}Z", "message": message, "reason": reason}}
    return {"containerStatuses": [{"name": "node", "state": state}]}


def test_the_error_of_the_node_that_failed_first_comes_out_with_its_kind(kube: FakeKube, start: Start) -> None:
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    noise = '{"exit_code": 70, "message": "DistBackendError: connection closed", "hint": null}'
    termination_message = '{"exit_code": 3, "message": "rank 9: loss or gradient is not finite", "hint": "lower optimizer.lr_peak"}'
    kube.node_pod(JOB, 0, phase="Failed", **terminated(70, "01", noise))
    kube.node_pod(JOB, 1, phase="Failed", **terminated(3, "02", termination_message))
    kube.condition(JOB, "Failed", "jobset failed")
    error = step.outcome()
    assert isinstance(error, DataRefused)
    assert error.message == "node 1: rank 9: loss or gradient is not finite"
    assert error.hint == "lower optimizer.lr_peak"


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (terminated(137, "01", reason="OOMKilled"), "node 1 ran out of memory", DataRefused),
        (terminated(1, "01", "Traceback\nKeyError: 'x'"), "node 1 ended with status 1: KeyError: 'x'", TemporaryFailure),
        ({"reason": "Evicted", "message": "The node was low on resource"}, "node 1 was evicted", TemporaryFailure),
        (terminated(139, "01"), "no termination message", TemporaryFailure),
    ],
)
def test_the_reason_comes_from_kubernetes_when_the_node_left_none(status: dict[str, Any], message: str, kind: type[CelebditError]) -> None:
    pod = {"metadata": {"labels": {"batch.kubernetes.io/job-completion-index": "1"}}, "status": {"phase": "Failed", **status}}
    error = first_failure([pod])
    assert isinstance(error, kind)
    assert message in error.message


def test_without_pods_the_error_holds_the_jobs_own_condition(kube: FakeKube, start: Start) -> None:
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Failed", "TrainingRuntime celebdit-torch not found")
    assert "celebdit-torch not found" in str(step.outcome())


def test_a_deleted_job_is_a_temporary_failure(kube: FakeKube, start: Start) -> None:
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    del kube.objects["trainjobs", JOB]
    error = step.outcome()
    assert isinstance(error, TemporaryFailure)
    assert "deleted from outside" in error.message


def test_a_pod_that_cannot_pull_its_image_is_explained() -> None:
    waiting = {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]}
    assert waiting_reason({"status": {"phase": "Pending", **waiting}}) == "ImagePullBackOff: not found"
