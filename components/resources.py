"""The `resources` section: on how many processes, threads and machines the heavy steps run. Never part of a run's identity."""

from pydantic import Field

from model.config import FrozenConfig


class ResourcesConfig(FrozenConfig):
    """What the train and evaluate steps may use."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda)$", description="auto: CUDA where there is one, else the CPU")
    processes: int = Field(1, ge=1, le=64, description="processes per machine: one per GPU, or CPU ranks")
    threads: int = Field(1, ge=1, le=256, description="CPU threads per process")
    nodes: int = Field(1, ge=1, le=512, description="machines; more than one needs Kubeflow Trainer")
    gpu_type: str = Field("nvidia.com/gpu", description="Kubernetes resource name of the GPUs")
    cpu: str = Field("4", pattern=r"^[0-9]+m?$", description="Kubernetes CPU request of the heavy steps")
    memory: str = Field("16Gi", pattern=r"^[0-9]+(Ki|Mi|Gi|Ti)$", description="Kubernetes memory limit of the heavy steps")
    shm: str = Field("8Gi", pattern=r"^[0-9]+(Mi|Gi)$", description="size of /dev/shm of the heavy steps")
