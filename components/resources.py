"""The `resources` section: processes, threads and machines of the train and evaluate steps. Never part of a run's identity."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from components.deployment import PRIORITY_LABEL, QUEUE_LABEL
from model.frozen_config import FrozenConfig, TextForm

_ADDED_LATER = (
    "node_timeout_s",
    "light_cpu",
    "light_memory",
    "queue",
    "priority_class",
    "labels",
    "annotations",
    "run_timeout_h",
    "keep_run_h",
)
_READ_AT_RUN_TIME = ("threads", "processes", "gpu_type", "rank_timeout_s", "node_timeout_s", "price_per_device_hour")
"""Settings that change no pod of a compiled pipeline; the number of processes and the kind of GPUs do where there are GPUs."""
_NAME = r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?"
_LABEL_KEY = re.compile(rf"({_NAME}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{{0,61}}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_OWN_LABELS = ("celebdit.io/", "kueue.x-k8s.io/", "app.kubernetes.io/part-of", "pipeline/", "pipelines.kubeflow.org/")
Cpu = Annotated[str, TextForm(r"[1-9][0-9]*m?", example="4 or 3500m")]
ObjectName = Annotated[str, TextForm(_NAME, example="team-queue")]
Quantity = Annotated[str, TextForm(r"[1-9][0-9]*(Mi|Gi|Ti)", example="16Gi")]


class Toleration(FrozenConfig):
    """A taint of Kubernetes nodes that the train and evaluate steps tolerate."""

    key: str = Field(min_length=1)
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = Field(None, description="for operator Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="unset: every effect")

    def problems(self) -> Iterator[str]:
        if (self.operator == "Equal") != (self.value is not None):
            yield "operator Equal needs a value, and Exists takes none"


class ResourcesConfig(FrozenConfig):
    """What the train and evaluate steps may use."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one, else the CPU")
    processes: int = Field(1, ge=1, le=64, description="processes per machine: one per GPU, or CPU ranks")
    threads: int = Field(1, ge=1, le=256, description="CPU threads per process")
    nodes: int = Field(1, ge=1, le=512, description="machines; more than one needs Kubeflow Trainer")
    rank_timeout_s: float = Field(600.0, ge=1, le=86400, description="seconds that a rank waits for another before it fails")
    node_timeout_s: float = Field(
        600.0, ge=1, le=86400, description="seconds that the nodes of a training wait for the last of them; meanwhile they hold their GPUs"
    )
    price_per_device_hour: float | None = Field(
        None, ge=0, description="what an hour of one GPU (or CPU rank) costs, in any currency, for `cost/total`. Default: not reported"
    )
    gpu_type: Annotated[str, TextForm(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", example="nvidia.com/gpu")] = Field(
        "nvidia.com/gpu", description="Kubernetes resource name of the GPUs, one per process"
    )
    cpu: Cpu = Field("4", description="Kubernetes CPU request of the heavy steps")
    memory: Quantity = Field("16Gi", description="Kubernetes memory request and limit of the heavy steps; holds shm too")
    light_cpu: Cpu = Field("1", description="Kubernetes CPU request of the other steps")
    light_memory: Quantity = Field("4Gi", description="Kubernetes memory request and limit of the other steps")
    shm: Quantity = Field("8Gi", description="size of /dev/shm of the heavy steps")
    scratch: Quantity = Field("100Gi", description="limit of a step's disk use on its node")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of the nodes that the heavy steps run on")
    tolerations: tuple[Toleration, ...] = Field((), description="taints of those nodes; on GPUs the taint gpu_type is tolerated too")
    timeout_h: int = Field(168, ge=1, le=8760, description="hours after which an attempt of a heavy step is stopped")

    run_timeout_h: int | None = Field(
        None, ge=1, le=87600, description="hours after which Kubeflow stops a whole run, waiting included. Default: never; needs KFP 2.17"
    )
    keep_run_h: int | None = Field(
        None,
        ge=1,
        le=87600,
        description="hours until the workflow of an ended run, with its pods, is deleted. Default: KFP's; needs KFP 2.17",
    )
    queue: ObjectName | None = Field(None, description="Kueue's local queue that admits the pods of the steps and the TrainJob")
    priority_class: ObjectName | None = Field(None, description="Kueue's workload priority class, for pods and TrainJob in a queue")
    labels: dict[str, str] = Field(default_factory=dict, description="labels of your site for the pods of the steps and the TrainJob")
    annotations: dict[str, str] = Field(default_factory=dict, description="annotations of your site for the same")

    def problems(self) -> Iterator[str]:
        if self.priority_class is not None and self.queue is None:
            yield f"priority_class {self.priority_class!r} counts only in a queue: set queue"
        for name, entries in (("labels", self.labels), ("annotations", self.annotations)):
            for key, value in entries.items():
                if key.startswith(_OWN_LABELS) or not _LABEL_KEY.fullmatch(key):
                    yield f"{name}: {key!r} is not a key that you can set: use your own, like example.com/team"
                if name == "labels" and not _LABEL_VALUE.fullmatch(value):
                    yield f"labels: {key} has the value {value!r}: at most 63 letters, digits, '-', '_' and '.', as Kubernetes has it"

    @property
    def site_labels(self) -> dict[str, str]:
        """The labels of the site, with those by which Kueue queues a pod or a TrainJob."""
        kueue = {QUEUE_LABEL: self.queue, PRIORITY_LABEL: self.priority_class}
        return {**self.labels, **{key: value for key, value in kueue.items() if value is not None}}

    def stored_settings(self) -> dict[str, Any]:
        """Return the section as JSON for what is stored, compared or digested: without settings that were added later and are not set."""
        values = self.model_dump(mode="json")
        fields = type(self).model_fields
        unset = [name for name in _ADDED_LATER if values[name] == fields[name].get_default(call_default_factory=True)]
        return {name: value for name, value in values.items() if name not in unset}

    def compiled_settings(self) -> dict[str, Any]:
        """Return what the pods of a compiled pipeline are made of, by setting; the other settings are read when a step runs."""
        values = self.model_dump(mode="json", exclude=set(_READ_AT_RUN_TIME))
        on_gpus = {"gpu_type": self.gpu_type, "processes": self.processes} if self.on_gpus else {}
        return {**values, "device": "cuda" if self.on_gpus else "cpu", "nodes": "several" if self.nodes > 1 else 1, **on_gpus}

    @property
    def num_ranks(self) -> int:
        """Processes on all machines together."""
        return self.processes * self.nodes

    @property
    def on_gpus(self) -> bool:
        """Whether the heavy steps request GPUs from Kubernetes."""
        return self.device != "cpu"

    @property
    def all_tolerations(self) -> tuple[Toleration, ...]:
        """The configured tolerations, and that of the taint that GPU nodes have by convention."""
        own = (Toleration(key=self.gpu_type, effect="NoSchedule"),) if self.on_gpus else ()
        return self.tolerations + tuple(added for added in own if added not in self.tolerations)
