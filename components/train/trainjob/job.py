"""Run a training on several nodes: create a Kubeflow Trainer v2 TrainJob and wait for it; its nodes run `node.py`.

Promises: a retried step adopts the running job of its run; a job with other settings, or one that has ended, is replaced; no pod of another
job may reach its pods; the error that is raised is that of the node that failed first; a step that is asked to stop deletes its job
(`lease.py` covers a step that cannot).
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from components.deployment import QUEUE_LABEL
from components.environment import IMAGE
from components.errors import BadInput, CelebditError, Preempted, TemporaryFailure
from components.kube.client import Cluster, Conflict
from components.kube.objects import KubernetesObject
from components.runtime.context import StepContext
from components.runtime.signal_flag import SignalFlag
from components.train.spec import TrainSpec, store_spec
from components.train.trainjob import network_policy as policies
from components.train.trainjob.failures import INDEX_LABEL, first_failure, waiting_reason
from components.train.trainjob.lease import Lease
from components.train.trainjob.log import LogStream
from components.train.trainjob.manifest import GROUP, PLURAL, SETTINGS_ANNOTATION, VERSION, trainjob
from components.train.trainjob.network_policy import JOBSET_LABEL

_POLL_S = 5.0
_PENDING_REPORT_S = 60.0


def train_on_nodes(
    spec: TrainSpec,
    context: StepContext,
    *,
    cluster: Cluster | None = None,
    poll_s: float = _POLL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Train `spec` on `spec.resources.nodes` nodes and wait for the end.

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
    with SignalFlag() as note:
        job.create_or_adopt()
        try:
            job.wait(poll_s=poll_s, sleep=sleep, stop_requested=lambda: note.received)
        except Preempted:
            job.delete()
            raise


def _owners(cluster: Cluster, pod_name: str | None) -> list[KubernetesObject]:
    """Return the owner of this step's pod, the run's workflow, so that deleting the run deletes its TrainJob."""
    pod = cluster.read("pods", pod_name) if pod_name else None
    owners = (pod or {}).get("metadata", {}).get("ownerReferences", [])
    return [{key: owner[key] for key in ("apiVersion", "kind", "name", "uid")} for owner in owners[:1]]


@dataclass
class _Job:
    """The TrainJob of one training."""

    cluster: Cluster
    manifest: KubernetesObject
    context: StepContext
    lease: Lease
    reported: str = ""
    reported_s: float = 0.0

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    def create_or_adopt(self) -> None:
        """Ensure that a TrainJob with our settings is running."""
        job = self.cluster.custom(GROUP, VERSION, PLURAL, self.name)
        if job is not None and self._is_ours(job):
            self.context.events.note(f"TrainJob {self.name} is already running: waiting for it")
            self._isolate(job)
            return
        if job is not None:
            self.context.events.note(f"TrainJob {self.name} has {end_state(job) or 'other settings'}: replacing it")
            self.delete()
        with suppress(Conflict):  # the response to our own request was lost, or another attempt of this step was faster: it is the same job
            self.cluster.create_custom(GROUP, VERSION, PLURAL, self.manifest)
        try:
            self._isolate(self.cluster.custom(GROUP, VERSION, PLURAL, self.name))
        except CelebditError:
            self.delete()  # its nodes could not meet
            raise
        nodes = self.manifest["spec"]["trainer"]["numNodes"]
        self.context.events.note(f"TrainJob {self.name} requests {nodes} nodes; its pods: kubectl get pods -l {JOBSET_LABEL}={self.name}")

    def _isolate(self, job: KubernetesObject | None) -> None:
        """Let the pods of `job` reach each other, and no other pod reach them, for as long as the job exists."""
        if job is None:
            return
        with suppress(Conflict):  # it exists
            self.cluster.create_custom(policies.GROUP, policies.VERSION, policies.PLURAL, policies.network_policy(job))

    def _is_ours(self, job: Mapping[str, Any]) -> bool:
        settings = job["metadata"].get("annotations", {}).get(SETTINGS_ANNOTATION)
        running = end_state(job) is None and not job["metadata"].get("deletionTimestamp")
        return running and settings == self.manifest["metadata"]["annotations"][SETTINGS_ANNOTATION]

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
                job = self.cluster.custom(GROUP, VERSION, PLURAL, self.name)
                if job is None:
                    raise TemporaryFailure(f"TrainJob {self.name} was deleted from outside", hint="run it again: training continues")
                state = end_state(job)
                if state is not None:
                    self.lease.mark_ended(_attempt_of(job))
                if state == "completed":
                    return
                if state == "failed":
                    raise self._failure(job)
                self.lease.renew()
                log.follow()
                self._report_waiting(job)
                sleep(poll_s)
        finally:
            log.close()

    def delete(self) -> None:
        """Delete the job and its pods."""
        self.cluster.delete_custom(GROUP, VERSION, PLURAL, self.name)

    def _failure(self, job: Mapping[str, Any]) -> CelebditError:
        return first_failure(self.cluster.pods(self._selector())) or TemporaryFailure(
            f"TrainJob {self.name} failed: {_condition(job, 'Failed').get('message', 'no reason given')}",
            hint=f"kubectl describe trainjob {self.name}",
        )

    def _report_waiting(self, job: Mapping[str, Any]) -> None:
        """Report that the job is queued, or once a minute which pods are pending and why; both are shown in their status only."""
        if suspended := _condition(job, "Suspended"):
            queue = self.manifest["metadata"]["labels"].get(QUEUE_LABEL)
            where = "is suspended" if queue is None else f"is queued in {queue}"
            self._report(f"TrainJob {self.name} {where}: {suspended.get('message') or 'no reason given'}")
            return
        if time.monotonic() - self.reported_s < _PENDING_REPORT_S:
            return
        self.reported_s = time.monotonic()
        reasons = sorted({reason for pod in self.cluster.pods(self._selector()) if (reason := waiting_reason(pod))})
        if reasons:
            self._report(f"TrainJob {self.name} is waiting: {'; '.join(reasons)}")

    def _report(self, text: str) -> None:
        if text != self.reported:
            self.reported = text
            self.context.events.note(text)

    def _selector(self, *, index: int | None = None) -> str:
        return f"{JOBSET_LABEL}={self.name}" + ("" if index is None else f",{INDEX_LABEL}={index}")


def end_state(job: Mapping[str, Any]) -> str | None:
    """Return "completed" or "failed", or None while the job runs."""
    if _condition(job, "Complete"):
        return "completed"
    return "failed" if _condition(job, "Failed") else None


def _attempt_of(job: Mapping[str, Any]) -> str:
    """Return the attempt that a job trains, which an adopting step did not begin: its specification lies in the attempt's folder."""
    return str(job["spec"]["trainer"]["args"][0]).split("/")[-2]


def _condition(job: Mapping[str, Any], kind: str) -> KubernetesObject:
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] == kind and condition["status"] == "True":
            return dict(condition)
    return {}
