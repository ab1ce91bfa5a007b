"""Why a training on several nodes failed or does not begin, as the step tells it."""

import json
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
        (terminated(9, "01"), "no termination message", TemporaryFailure),
        (terminated(139, "01"), "node 1 was killed by SIGSEGV (status 139)", TemporaryFailure),
        (terminated(137, "01", "step 5\nstep 6"), "node 1 was killed by SIGKILL (status 137)", TemporaryFailure),
        (terminated(143, "01", "step 6"), "node 1 was killed by SIGTERM (status 143)", TemporaryFailure),
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


def pod(index: int, **status: Any) -> dict[str, Any]:
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    return {"metadata": {"labels": labels}, "status": {"phase": "Failed", **status}}


def reported(kind: str, message: str) -> str:
    return json.dumps({"exit_code": 75, "kind": kind, "message": message, "hint": "run it again"})


def test_the_log_of_a_killed_node_is_apart_from_the_reason() -> None:
    error = first_failure([pod(1, **terminated(137, "01", "loss 0.1\nloss 0.2"))])
    assert error is not None
    assert error.message == "node 1 was killed by SIGKILL (status 137)"
    assert error.hint == "the end of its log: loss 0.2"


def test_a_node_that_was_stopped_with_its_job_does_not_hide_the_one_that_failed() -> None:
    stopped = pod(0, **terminated(75, "01", reported("Preempted", "the step was asked to stop")))
    for other, text in (
        (terminated(137, "02"), "node 1 was killed by SIGKILL"),
        (terminated(75, "02", reported("RankLost", "rank 1: another rank is gone")), "node 1: rank 1: another rank is gone"),
        (terminated(75, "02", reported("TemporaryFailure", "rank 1 was killed by SIGKILL")), "node 1: rank 1 was killed"),
    ):
        error = first_failure([stopped, pod(1, **other)])
        assert error is not None
        assert text in error.message
    alone = first_failure([stopped, pod(1, **terminated(75, "02", reported("Preempted", "training was stopped at step 5")))])
    assert alone is not None
    assert alone.message == "node 0: the step was asked to stop"


def test_a_node_that_is_killed_long_after_another_gave_up_is_killed_with_its_job() -> None:
    gave_up = pod(0, **terminated(75, "01", reported("RankLost", "rank 0: another rank did not answer for 600 s")))
    late, at_once = pod(1, **terminated(137, "58")), pod(1, **terminated(137, "02"))
    for killed, text in ((late, "node 0: rank 0: another rank did not answer"), (at_once, "node 1 was killed by SIGKILL")):
        error = first_failure([gave_up, killed])
        assert error is not None
        assert text in error.message


def test_who_stopped_a_pod_is_named_where_kubernetes_says_it() -> None:
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "preempting to accommodate a higher priority pod",
        "lastTransitionTime": "2026-01-01T00:00:01Z",
    }
    drained = pod(1, conditions=[condition], **terminated(75, "09", reported("Preempted", "training was stopped at step 5")))
    error = first_failure([pod(0, **terminated(75, "08", reported("RankLost", "rank 0: another rank is gone"))), drained])
    assert error is not None
    assert error.message.startswith("node 1 was stopped by Kubernetes: PreemptionByScheduler: preempting")


def test_a_node_that_never_came_is_named_beside_the_error_of_those_that_waited() -> None:
    waited = pod(0, **terminated(75, "01", reported("TemporaryFailure", "no rank was started: 1 of 2 nodes came within 600 s")))
    unscheduled = [{"type": "PodScheduled", "status": "False", "message": "0/5 nodes are available: 5 Insufficient nvidia.com/gpu."}]
    error = first_failure([waited, pod(1, phase="Pending", conditions=unscheduled)])
    assert error is not None
    assert error.message == "node 0: no rank was started: 1 of 2 nodes came within 600 s"
    assert error.hint == "node 1 did not start: 0/5 nodes are available: 5 Insufficient nvidia.com/gpu.; run it again"
