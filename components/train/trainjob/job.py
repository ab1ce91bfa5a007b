"""Training on several nodes: a Kubeflow Trainer v2 TrainJob is made, waited for and taken down again; its nodes run `node.py`.

Promises: a retried step finds the job of its run and goes on waiting; a job of other settings or one that has ended is replaced; what comes
out is the error of the node that failed first; a step that is asked to stop deletes its job (`lease.py` is for one that cannot). What
the job is, why it failed and what its first node says are beside this file, in `trainjob_*.py`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from components.environment import IMAGE
from components.errors import BadInput, CelebditError, Preempted, TemporaryFailure
from components.kube.client import Cluster, Conflict
from components.kube.objects import KubernetesObject
from components.runtime.context import StepContext
from components.runtime.launch import SignalNote
from components.train.spec import TrainSpec, store_spec
from components.train.trainjob.failures import INDEX_LABEL, first_failure, waiting_reason
from components.train.trainjob.lease import Lease
from components.train.trainjob.log import LogStream
from components.train.trainjob.manifest import GROUP, PLURAL, SETTINGS_ANNOTATION, VERSION, trainjob

_JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
_POLL_S = 5.0
_SAY_WAITING_S = 60.0


def train_on_nodes(
    spec: TrainSpec,
    context: StepContext,
    *,
    cluster: Cluster | None = None,
    poll_s: float = _POLL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Train as `spec` says on `spec.resources.nodes` nodes and wait for the end.

    Raises:
        CelebditError: what the first failing node reported, or `Preempted` after SIGTERM.
    """
    image = context.settings.image
    if not image:
        raise BadInput(
            f"resources.nodes is {spec.resources.nodes}, and {IMAGE} names no image for the other nodes",
            hint="several nodes need Kubernetes: use `celebdit submit`, or set resources.nodes=1",
        )
    cluster = Cluster.connect(namespace=context.settings.namespace) if cluster is None else cluster
    uri = store_spec(spec, context.store, context.layout)
    manifest = trainjob(spec, str(uri), image, context.settings, owners=_owners(cluster, context.settings.pod))
    lease = Lease(context.store, context.layout.run(spec.run_key).leases)
    lease.renew()
    job = _Job(cluster, manifest, context, lease)
    with SignalNote() as note:
        job.make_or_adopt()
        try:
            job.wait(poll_s=poll_s, sleep=sleep, stop_requested=lambda: note.received)
        except Preempted:
            job.delete()
            raise


def _owners(cluster: Cluster, pod_name: str | None) -> list[KubernetesObject]:
    """Return the owner of the pod of this step, which is the run's workflow: when the run is deleted, its TrainJob goes too."""
    pod = cluster.read("pods", pod_name) if pod_name else None
    owners = (pod or {}).get("metadata", {}).get("ownerReferences", [])
    return [{key: owner[key] for key in ("apiVersion", "kind", "name", "uid")} for owner in owners[:1]]


@dataclass
class _Job:
    """One TrainJob on its way."""

    cluster: Cluster
    manifest: KubernetesObject
    context: StepContext
    lease: Lease
    said: str = ""
    said_s: float = 0.0

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    def make_or_adopt(self) -> None:
        """Have a running TrainJob with our settings."""
        found = self.cluster.custom(GROUP, VERSION, PLURAL, self.name)
        if found is not None and self._is_ours(found):
            self.context.events.note(f"TrainJob {self.name} is there already: going on with it")
            return
        if found is not None:
            self.context.events.note(f"TrainJob {self.name} has {ended(found) or 'other settings'}: it is replaced")
            self.delete()
        with suppress(Conflict):  # the answer to our own request was lost, or a twin of this step was faster: it is the same job
            self.cluster.create_custom(GROUP, VERSION, PLURAL, self.manifest)
        nodes = self.manifest["spec"]["trainer"]["numNodes"]
        self.context.events.note(f"TrainJob {self.name} asks for {nodes} nodes; its pods: kubectl get pods -l {_JOBSET_LABEL}={self.name}")

    def _is_ours(self, found: Mapping[str, Any]) -> bool:
        settings = found["metadata"].get("annotations", {}).get(SETTINGS_ANNOTATION)
        going = ended(found) is None and not found["metadata"].get("deletionTimestamp")
        return going and settings == self.manifest["metadata"]["annotations"][SETTINGS_ANNOTATION]

    def wait(self, *, poll_s: float, sleep: Callable[[float], None], stop_requested: Callable[[], bool]) -> None:
        """Wait until the job is complete, printing node 0's log.

        Raises:
            CelebditError: why it failed. Preempted: if this step was asked to stop.
        """
        log = LogStream(self.cluster, self._selector(index=0))
        try:
            while True:
                if stop_requested():
                    raise Preempted("the step was asked to stop", hint="run it again: training continues from its last checkpoint")
                found = self.cluster.custom(GROUP, VERSION, PLURAL, self.name)
                if found is None:
                    raise TemporaryFailure(f"TrainJob {self.name} was deleted by somebody", hint="run it again: training continues")
                state = ended(found)
                if state == "completed":
                    return
                if state == "failed":
                    raise self._failure(found)
                self.lease.renew()
                log.follow()
                self._say_why_it_waits()
                sleep(poll_s)
        finally:
            log.close()

    def delete(self) -> None:
        """Take the job down with its pods."""
        self.cluster.delete_custom(GROUP, VERSION, PLURAL, self.name)

    def _failure(self, found: Mapping[str, Any]) -> CelebditError:
        return first_failure(self.cluster.pods(self._selector())) or TemporaryFailure(
            f"TrainJob {self.name} failed: {_condition(found, 'Failed').get('message', 'no reason given')}",
            hint=f"kubectl describe trainjob {self.name}",
        )

    def _say_why_it_waits(self) -> None:
        """Tell once a minute which pods do not run and why: a cluster without room says so only there."""
        if time.monotonic() - self.said_s < _SAY_WAITING_S:
            return
        self.said_s = time.monotonic()
        reasons = sorted({reason for pod in self.cluster.pods(self._selector()) if (reason := waiting_reason(pod))})
        text = "; ".join(reasons)
        if text and text != self.said:
            self.said = text
            self.context.events.note(f"TrainJob {self.name} waits: {text}")

    def _selector(self, *, index: int | None = None) -> str:
        return f"{_JOBSET_LABEL}={self.name}" + ("" if index is None else f",{INDEX_LABEL}={index}")


def ended(found: Mapping[str, Any]) -> str | None:
    """Return "completed" or "failed", or None while the job goes on."""
    if _condition(found, "Complete"):
        return "completed"
    return "failed" if _condition(found, "Failed") else None


def _condition(found: Mapping[str, Any], kind: str) -> KubernetesObject:
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] == kind and condition["status"] == "True":
            return dict(condition)
    return {}
