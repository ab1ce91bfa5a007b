"""Why pods of a run on Kubeflow Pipelines wait: the scheduler's reason, which KFP does not show.

Promises: each reason is reported once; a cluster that cannot be read costs one line and is not asked again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from components.deployment import STEP_LABEL
from components.errors import CelebditError
from components.kube.client import Cluster
from components.runtime.events import Event
from components.train.trainjob.failures import waiting_reason

_RUN_LABEL = "pipeline/runid"
"""The label that KFP gives the pods of a run."""
_EVERY_S = 15.0


def find_cluster(namespace: str | None) -> Cluster | None:
    """Return the cluster of kubectl, or None if none is configured here."""
    try:
        return Cluster.connect(namespace=namespace or "kubeflow", deadline_s=5.0)
    except CelebditError:
        return None


@dataclass
class WaitingPods:
    """The pods of one run."""

    cluster: Cluster
    run_id: str
    on_event: Callable[[Event], None]
    every_s: float = _EVERY_S
    clock: Callable[[], float] = time.monotonic
    _reported: dict[str, str] = field(default_factory=dict)
    _next_s: float = 0.0

    def report(self) -> None:
        """Report each pod that waits and why, if that is new; looks at the pods at most every `every_s` seconds."""
        if self.clock() < self._next_s:
            return
        self._next_s = self.clock() + self.every_s
        try:
            pods = self.cluster.pods(f"{_RUN_LABEL}={self.run_id}")
        except CelebditError as error:
            self._next_s = float("inf")
            self._note("pods", f"not shown why pods wait: {error.message}")
            return
        for pod in pods:
            name = str(pod["metadata"].get("name"))
            reason = waiting_reason(pod)
            if reason is not None and self._reported.get(name) != reason:
                step = pod["metadata"].get("labels", {}).get(STEP_LABEL, "a driver")
                self._note(str(step), f"its pod {name} waits: {reason}")
            self._reported[name] = reason or ""

    def _note(self, step: str, text: str) -> None:
        self.on_event(Event(step, "note", time.time(), {"text": text}))
