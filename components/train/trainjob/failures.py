"""Why a training on several nodes failed or does not start, from the status of its pods.

Promises: pure; a node's own termination message wins over Kubernetes' status, and both over errors that are only consequences of another
node's failure, such as a node that was stopped because its job had failed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from functools import partial
from typing import Any

from components.errors import EXIT_BUG, CelebditError, DataRefused, Preempted, RankLost, TemporaryFailure, error_for_exit_code, shorten
from components.kube.objects import KubernetesObject
from components.runtime.agent_report import signal_name
from components.runtime.memory_hint import LESS_MEMORY

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_TEARDOWN_S = 5.0
"""A node that is killed so much later than another one failed is killed with its job; the clocks of two nodes may differ by less."""
_shorten = partial(shorten, max_characters=300)


def first_failure(pods: list[KubernetesObject]) -> CelebditError | None:
    """Return the error of the node that failed first; its own termination message wins over consequences on other nodes.

    Pods that never ran are named in the hint: the others may have failed because they waited for them.
    """
    failures = [failure for pod in pods for failure in _failures_of(pod)]
    if not failures:
        return None
    began_s = min((failure.at_s for failure in failures if failure.at_s), default=0.0)
    first = min(failures, key=lambda failure: (failure.source(began_s), failure.at_s)).error
    waiting = sorted(f"node {_node(pod)} did not start: {reason}" for pod in pods if (reason := waiting_reason(pod)))
    if waiting:
        first.hint = "; ".join([*waiting, *([first.hint] if first.hint else [])])
    return first


def waiting_reason(pod: Mapping[str, Any]) -> str | None:
    """Return why a pod does not run yet, as Kubernetes reports it."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return None
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return _shorten(f"{waiting['reason']}: {waiting.get('message', '')}".strip(": "))
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _shorten(str(condition.get("message", condition.get("reason"))))
    return None


class _Source(IntEnum):
    """Who reports a failure, from the most telling to what is only a consequence."""

    NODE = 0
    KUBERNETES = 1
    LOST_RANK = 2
    """A rank lost another one, or met an internal error, which is often the same."""
    STOPPED = 3
    """The node was asked to stop, or killed some time after another one had failed."""


@dataclass(frozen=True)
class _Failure:
    reported_by: _Source
    at_s: float
    error: CelebditError
    is_kill: bool = False

    def source(self, began_s: float) -> _Source:
        """Return who reports it, if the first failure of any node was at `began_s`."""
        return _Source.STOPPED if self.is_kill and self.at_s > began_s + _TEARDOWN_S else self.reported_by


def _node(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"].get("labels", {}).get(INDEX_LABEL, "?"))


def _failures_of(pod: Mapping[str, Any]) -> list[_Failure]:
    node, status = _node(pod), pod.get("status", {})
    if status.get("reason") == "Evicted":
        error = TemporaryFailure(_shorten(f"node {node} was evicted: {status.get('message', '')}"), hint="run it again: training continues")
        return [_Failure(_Source.KUBERNETES, 0.0, error)]
    disrupted = _disruption(node, status)
    failures = [] if disrupted is None else [disrupted]
    for container in status.get("containerStatuses", []):
        terminated = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
        if terminated and terminated.get("exitCode"):
            failures.append(_failure(node, terminated))
    return failures


def _disruption(node: str, status: Mapping[str, Any]) -> _Failure | None:
    """Return that Kubernetes ended a pod for a reason of its own: a preemption, a drain, a taint."""
    for condition in status.get("conditions", []):
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            text = f"node {node} was stopped by Kubernetes: {condition.get('reason')}: {condition.get('message', '')}"
            at_s = _seconds(condition.get("lastTransitionTime"))
            return _Failure(_Source.KUBERNETES, at_s, TemporaryFailure(_shorten(text), hint="run it again: training continues"))
    return None


def _failure(node: str, terminated: Mapping[str, Any]) -> _Failure:
    at_s, status = _seconds(terminated.get("finishedAt")), int(terminated["exitCode"])
    if terminated.get("reason") == "OOMKilled":
        hint = f"raise resources.memory (it includes /dev/shm), or {LESS_MEMORY}"
        return _Failure(_Source.KUBERNETES, at_s, DataRefused(f"node {node} ran out of memory", hint=hint))
    try:
        reported = json.loads(terminated.get("message") or "")
        code, message, hint = int(reported["exit_code"]), str(reported["message"]), reported["hint"]
        kind = reported.get("kind")
    except (ValueError, KeyError, TypeError):
        return _unexplained_failure(node, status, at_s, str(terminated.get("message") or ""))
    source = _Source.NODE
    if code == EXIT_BUG or kind == RankLost.__name__:
        source = _Source.LOST_RANK
    if kind == Preempted.__name__:
        source = _Source.STOPPED
    return _Failure(source, at_s, error_for_exit_code(code, f"node {node}: {message}", hint=hint))


def _unexplained_failure(node: str, status: int, at_s: float, log: str) -> _Failure:
    """Return the failure of a node that left no message but perhaps the end of its log."""
    lines = log.strip().splitlines()
    last = _shorten(lines[-1]) if lines else ""
    if status > 128:
        hint = f"the end of its log: {last}" if last else "it left no log"
        error = TemporaryFailure(f"node {node} was killed by {signal_name(status - 128)} (status {status})", hint=hint)
        return _Failure(_Source.KUBERNETES, at_s, error, is_kill=True)
    error = TemporaryFailure(f"node {node} ended with status {status}: {last or 'no termination message'}", hint="read the log above")
    return _Failure(_Source.KUBERNETES, at_s, error)


def _seconds(timestamp: object) -> float:
    return datetime.fromisoformat(str(timestamp)).timestamp() if timestamp else 0.0
