"""Training on several nodes: a Kubeflow Trainer v2 TrainJob is made, waited for and taken down again; its nodes run `node.py`.

Promises: a retried step finds the job of its run and goes on waiting; a job of other settings or one that has ended is replaced; what comes
out is the error of the node that failed first; a step that is asked to stop deletes its job (`lease.py` is for one that cannot). Secrets
are named in the job, never contained.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from components import cluster as names
from components.context import StepContext
from components.errors import EXIT_BUG, BadInput, CelebditError, DataRefused, Preempted, RankLost, TemporaryFailure, error_for_exit_code
from components.kube import Cluster, Conflict
from components.launch import SignalNote
from components.manifests import digest_of
from components.settings import GIT_COMMIT, IMAGE_DIGEST, PRESET, RUN_ID, RUN_URL, WORK_DIR
from components.train.lease import Lease
from components.train.spec import TrainSpec, store_spec

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
CONTAINER = "node"
SETTINGS_ANNOTATION = "celebdit.io/settings-sha256"
_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
_PASSED_ON = (RUN_ID, RUN_URL, PRESET, GIT_COMMIT, IMAGE_DIGEST)
_POLL_S = 5.0
_SAY_WAITING_S = 60.0


def train_on_nodes(
    spec: TrainSpec,
    context: StepContext,
    *,
    environ: Mapping[str, str],
    cluster: Cluster | None = None,
    poll_s: float = _POLL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Train as `spec` says on `spec.resources.nodes` nodes and wait for the end.

    Raises:
        CelebditError: what the first failing node reported, or `Preempted` after SIGTERM.
    """
    image = environ.get(names.IMAGE)
    if not image:
        raise BadInput(
            f"resources.nodes is {spec.resources.nodes}, and {names.IMAGE} names no image for the other nodes",
            hint="several nodes need Kubernetes: use `celebdit submit`, or set resources.nodes=1",
        )
    cluster = Cluster.connect(environ) if cluster is None else cluster
    uri = store_spec(spec, context.store, context.root)
    manifest = trainjob(spec, str(uri), image, environ, owners=_owners(cluster, environ))
    lease = Lease(context.store, context.root / "runs" / spec.run_key / "leases")
    lease.renew()
    job = _Job(cluster, manifest, context, lease)
    with SignalNote() as note:
        job.make_or_adopt()
        try:
            job.wait(poll_s=poll_s, sleep=sleep, stop_asked=lambda: note.received)
        except Preempted:
            job.delete()
            raise


def job_name(run_key: str) -> str:
    """Return the name of the one TrainJob of a run; short enough for the names of its pods."""
    return f"celebdit-{run_key}"


def trainjob(spec: TrainSpec, spec_uri: str, image: str, environ: Mapping[str, str], *, owners: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the TrainJob for `spec` as plain JSON."""
    body: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": names.TRAINING_RUNTIME},
        "trainer": {
            "image": image,
            "numNodes": spec.resources.nodes,
            "numProcPerNode": spec.resources.processes,
            "command": ["python", "-m", "components.train.node"],
            "env": _environment(environ),
            "resourcesPerNode": _resources(spec),
        },
        "runtimePatches": [
            {"manager": "celebdit.io/pipeline", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [_pods(spec)]}}}}
        ],
        "activeDeadlineSeconds": 3600 * spec.resources.timeout_h,
    }
    settings = digest_of(body)
    # Left out of the settings, because each attempt writes a file of its own.
    body["trainer"]["args"] = [spec_uri]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(spec.run_key),
            "labels": {
                **names.PART_OF,
                names.STEP_LABEL: "train",
                names.RUN_KEY_LABEL: spec.run_key,
                names.RUN_LABEL: environ.get(RUN_ID, "none"),
            },
            "annotations": {SETTINGS_ANNOTATION: settings},
            **({"ownerReferences": owners} if owners else {}),
        },
        "spec": body,
    }


def _environment(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what the nodes find in their environment: who they are by value, endpoints and credentials by reference."""
    plain = {WORK_DIR: names.SCRATCH_PATH, **{name: environ[name] for name in _PASSED_ON if environ.get(name)}}
    entries: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items()]
    for secret, keys in names.SECRET_KEYS.items():
        entries += [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}} for key in keys]
    for key in names.CONFIG_KEYS:
        entries.append({"name": key, "valueFrom": {"configMapKeyRef": {"name": names.CONFIG_MAP, "key": key, "optional": True}}})
    return entries


def _resources(spec: TrainSpec) -> dict[str, Any]:
    asked = spec.resources
    gpus = {asked.gpu_type: str(asked.processes)} if asked.on_gpus else {}
    return {"requests": {"cpu": asked.cpu, "memory": asked.memory, **gpus}, "limits": {"memory": asked.memory, **gpus}}


def _pods(spec: TrainSpec) -> dict[str, Any]:
    """Return how the pods of the runtime are patched: where they run, and their space for scratch and shared memory."""
    asked = spec.resources
    pod: dict[str, Any] = {
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": asked.scratch}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": asked.shm}},
        ],
        "containers": [
            {
                "name": CONTAINER,
                "volumeMounts": [{"name": "scratch", "mountPath": names.SCRATCH_PATH}, {"name": "shm", "mountPath": names.SHM_PATH}],
            }
        ],
    }
    if asked.node_selector:
        pod["nodeSelector"] = dict(asked.node_selector)
    if asked.all_tolerations:
        pod["tolerations"] = [toleration.model_dump(exclude_none=True) for toleration in asked.all_tolerations]
    labels = {**names.PART_OF, names.STEP_LABEL: "train"}
    return {"name": CONTAINER, "template": {"spec": {"template": {"metadata": {"labels": labels}, "spec": pod}}}}


def _owners(cluster: Cluster, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the owner of this step's pod, which is the run's workflow: when the run is deleted, its TrainJob goes too."""
    pod = cluster.read("pods", environ[names.POD]) if environ.get(names.POD) else None
    owners = (pod or {}).get("metadata", {}).get("ownerReferences", [])
    return [{key: owner[key] for key in ("apiVersion", "kind", "name", "uid")} for owner in owners[:1]]


@dataclass
class _Job:
    """One TrainJob on its way."""

    cluster: Cluster
    manifest: dict[str, Any]
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

    def wait(self, *, poll_s: float, sleep: Callable[[float], None], stop_asked: Callable[[], bool]) -> None:
        """Wait until the job is complete, printing node 0's log.

        Raises:
            CelebditError: why it failed. Preempted: if this step was asked to stop.
        """
        log = _LogStream(self.cluster, self._selector(index=0))
        try:
            while True:
                if stop_asked():
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
        return f"{_JOBSET_LABEL}={self.name}" + ("" if index is None else f",{_INDEX_LABEL}={index}")


class _LogStream:
    """Prints the log of a pod while the main thread waits; begins again when the pod is replaced."""

    def __init__(self, cluster: Cluster, selector: str) -> None:
        self._cluster = cluster
        self._selector = selector
        self._thread: threading.Thread | None = None
        self._seen = set[str]()

    def follow(self) -> None:
        """Begin to print, if node 0 has a pod with a log that is not printed yet."""
        if self._thread is not None and self._thread.is_alive():
            return
        for pod in self._cluster.pods(self._selector):
            identity = str(pod["metadata"].get("uid"))
            if pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed") and identity not in self._seen:
                self._seen.add(identity)
                self._thread = threading.Thread(target=self._print, args=(pod["metadata"]["name"],), name="log", daemon=True)
                self._thread.start()
                return

    def close(self) -> None:
        """Let the last lines come."""
        self.follow()
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    def _print(self, pod: str) -> None:
        for line in self._cluster.log(pod, CONTAINER):
            print(line, file=sys.stderr, flush=True)


def ended(found: Mapping[str, Any]) -> str | None:
    """Return "completed" or "failed", or None while the job goes on."""
    if _condition(found, "Complete"):
        return "completed"
    return "failed" if _condition(found, "Failed") else None


def first_failure(pods: list[dict[str, Any]]) -> CelebditError | None:
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
    node = pod["metadata"].get("labels", {}).get(_INDEX_LABEL, "?")
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


def _condition(found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] == kind and condition["status"] == "True":
            return dict(condition)
    return {}
