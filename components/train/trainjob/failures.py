"""Why a training on several nodes failed or does not begin, read from the status of its pods.

Promises: pure; what a node said of itself wins over what Kubernetes saw of it, and both over the noise that one node's end makes on the
others.
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
    """Return the error of the node that failed first; one that a node told us wins over the noise that it caused on the others."""
    failures = [failure for pod in pods for failure in _failures_of(pod)]
    if not failures:
        return None
    return min(failures, key=lambda failure: (failure.rank, failure.at_s)).error


def waiting_reason(pod: Mapping[str, Any]) -> str | None:
    """Return why a pod does not run yet, in Kubernetes' own words."""
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
    """0: said by the node itself; 1: seen by Kubernetes; 2: a node that only lost another, or a bug, often only noise."""
    at_s: float
    error: CelebditError


def _failures_of(pod: Mapping[str, Any]) -> list[_Failure]:
    node = pod["metadata"].get("labels", {}).get(INDEX_LABEL, "?")
    status = pod.get("status", {})
    if status.get("reason") == "Evicted":
        error = TemporaryFailure(f"node {node} was evicted: {status.get('message', '')}"[:300], hint="run it again: training continues")
        return [_Failure(1, 0.0, error)]
    found = []
    for container in status.get("containerStatuses", []):
        ended_as = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
        if ended_as and ended_as.get("exitCode"):
            found.append(_failure(str(node), ended_as))
    return found


def _failure(node: str, ended_as: Mapping[str, Any]) -> _Failure:
    at_s = datetime.fromisoformat(ended_as["finishedAt"]).timestamp() if ended_as.get("finishedAt") else 0.0
    if ended_as.get("reason") == "OOMKilled":
        hint = "raise resources.memory (it holds /dev/shm too), or lower training.microbatch_images"
        return _Failure(1, at_s, DataRefused(f"node {node} ran out of memory", hint=hint))
    try:
        told = json.loads(ended_as.get("message") or "")
        code, message, hint = int(told["exit_code"]), str(told["message"]), told["hint"]
        noise = code == EXIT_BUG or told.get("kind") == RankLost.__name__
    except (ValueError, KeyError, TypeError):
        lines = str(ended_as.get("message") or "").strip().splitlines()
        last = lines[-1][:300] if lines else "it left no reason"
        return _Failure(
            1, at_s, TemporaryFailure(f"node {node} ended with status {ended_as['exitCode']}: {last}", hint="read the log above")
        )
    return _Failure(2 if noise else 0, at_s, error_for_exit_code(code, f"node {node}: {message}", hint=hint))
