"""Why a training on several nodes failed or does not start, from the status of its pods.

Promises: pure; a node's own termination message wins over Kubernetes' status, and both over errors that are only consequences of another
node's failure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from components.errors import EXIT_BUG, CelebditError, DataRefused, RankLost, TemporaryFailure, error_for_exit_code
from components.kube.objects import KubernetesObject

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


def first_failure(pods: list[KubernetesObject]) -> CelebditError | None:
    """Return the error of the node that failed first; its own termination message wins over consequences on other nodes."""
    failures = [failure for pod in pods for failure in _failures_of(pod)]
    if not failures:
        return None
    return min(failures, key=lambda failure: (failure.rank, failure.at_s)).error


def waiting_reason(pod: Mapping[str, Any]) -> str | None:
    """Return why a pod does not run yet, as Kubernetes reports it."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return None
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")[:300]
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message", condition.get("reason")))[:300]
    return None


@dataclass(frozen=True)
class _Failure:
    rank: int
    """0: reported by the node itself; 1: reported by Kubernetes; 2: a lost rank or an internal error, often only a consequence."""
    at_s: float
    error: CelebditError


def _failures_of(pod: Mapping[str, Any]) -> list[_Failure]:
    node = pod["metadata"].get("labels", {}).get(INDEX_LABEL, "?")
    status = pod.get("status", {})
    if status.get("reason") == "Evicted":
        error = TemporaryFailure(f"node {node} was evicted: {status.get('message', '')}"[:300], hint="run it again: training continues")
        return [_Failure(1, 0.0, error)]
    failures = []
    for container in status.get("containerStatuses", []):
        terminated = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
        if terminated and terminated.get("exitCode"):
            failures.append(_failure(str(node), terminated))
    return failures


def _failure(node: str, terminated: Mapping[str, Any]) -> _Failure:
    at_s = datetime.fromisoformat(terminated["finishedAt"]).timestamp() if terminated.get("finishedAt") else 0.0
    if terminated.get("reason") == "OOMKilled":
        hint = "raise resources.memory (it includes /dev/shm), or lower training.microbatch_images"
        return _Failure(1, at_s, DataRefused(f"node {node} ran out of memory", hint=hint))
    try:
        reported = json.loads(terminated.get("message") or "")
        code, message, hint = int(reported["exit_code"]), str(reported["message"]), reported["hint"]
        consequence = code == EXIT_BUG or reported.get("kind") == RankLost.__name__
    except (ValueError, KeyError, TypeError):
        lines = str(terminated.get("message") or "").strip().splitlines()
        last = lines[-1][:300] if lines else "no termination message"
        return _Failure(
            1, at_s, TemporaryFailure(f"node {node} ended with status {terminated['exitCode']}: {last}", hint="read the log above")
        )
    return _Failure(2 if consequence else 0, at_s, error_for_exit_code(code, f"node {node}: {message}", hint=hint))
