"""Names shared by the pipeline, its steps and the manifests in docker/kubernetes: secrets, configuration, volumes, labels.

Promises: a secret is named here by its object and key, never by a value. A test compares the manifests with these names.

The image names are placeholders that `compile` replaces by digests; locally, where steps run as subprocesses, they are never looked up.
They contain "python" because kfp's local runner warns otherwise.
"""

from components import environment_variable as objects
from components.environment import MLFLOW, STORE, pod_variables

CPU_IMAGE = "localhost/celebdit-python-cpu:dev"
GPU_IMAGE = "localhost/celebdit-python-gpu:dev"

CONFIG_MAP = objects.CONFIG_MAP
S3_SECRET = objects.S3_SECRET
MLFLOW_SECRET = objects.MLFLOW_SECRET
KAGGLE_SECRET = objects.KAGGLE_SECRET
SECRET_KEYS = {S3_SECRET: pod_variables(objects.S3_SECRET), MLFLOW_SECRET: pod_variables(objects.MLFLOW_SECRET)}
"""Secrets of every step; a key is also the name of its environment variable."""
KAGGLE_KEYS = pod_variables(objects.KAGGLE_SECRET)
"""A token, or a user name with its key, as kagglehub reads them; public datasets need neither."""
HUB_KEYS = ("HF_TOKEN",)
"""A token, as huggingface-hub reads it; public datasets need none, and steps on a cluster get none."""
CONFIG_KEYS = pod_variables(objects.CONFIG_MAP)
"""Settings of all steps together."""
REQUIRED_CONFIG_KEYS = (STORE, MLFLOW)

SERVICE_ACCOUNT = "pipeline-runner"
"""The account that KFP runs steps as."""
TRAINING_RUNTIME = "celebdit-torch"
"""The ClusterTrainingRuntime of docker/kubernetes."""

SCRATCH_PATH = "/scratch"
SHM_PATH = "/dev/shm"  # noqa: S108 - where torch's workers share memory
CERTIFICATES_SECRET = "celebdit-certificates"  # noqa: S105
"""Certificate authorities and client certificates as files: `ca.crt` and whatever else a setting of the ConfigMap names. Optional."""
CERTIFICATES_PATH = "/etc/celebdit/certificates"
IMAGE_USER = 10001
PART_OF = {"app.kubernetes.io/part-of": "celebdit"}
STEP_LABEL = "celebdit.io/step"
"""Label of a step's pods, for network policies and `kubectl get pods -l`."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
"""Labels by which Kueue queues a TrainJob, or a pod."""
RUN_LABEL = "celebdit.io/pipeline-run"
RUN_KEY_LABEL = "celebdit.io/run-key"


def config_keys(step: str) -> tuple[str, ...]:
    """Return the settings that the pods of one step get from the ConfigMap."""
    return pod_variables(objects.CONFIG_MAP, step)
