"""Names shared by the pipeline, its steps and the manifests in docker/kubernetes: secrets, configuration, volumes, labels.

Promises: a secret is named here by its object and key, never by a value. A test compares the manifests with these names.

The image names are placeholders that `compile` replaces by digests; locally, where steps run as subprocesses, they are never looked up.
They contain "python" because kfp's local runner warns otherwise.
"""

from components.environment import CREDENTIALS, EXPERIMENT, KFP_UI, MLFLOW, S3_ENDPOINT, STORE

CPU_IMAGE = "localhost/celebdit-python-cpu:dev"
GPU_IMAGE = "localhost/celebdit-python-gpu:dev"

S3_SECRET = "celebdit-s3"  # noqa: S105 - the name of an object
MLFLOW_SECRET = "celebdit-mlflow"  # noqa: S105
KAGGLE_SECRET = "celebdit-kaggle"  # noqa: S105
CONFIG_MAP = "celebdit-config"
SECRET_KEYS = {
    S3_SECRET: CREDENTIALS,
    MLFLOW_SECRET: ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}
"""Secrets of every step; a key is also the name of its environment variable."""
KAGGLE_KEYS = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")
"""A token, or a user name with its key, as kagglehub reads them; public datasets need neither."""
HUB_KEYS = ("HF_TOKEN",)
"""A token, as huggingface-hub reads it; public datasets need none."""
CONFIG_KEYS = (STORE, MLFLOW, S3_ENDPOINT, "AWS_REGION", EXPERIMENT, KFP_UI)
REQUIRED_CONFIG_KEYS = (STORE, MLFLOW)

SERVICE_ACCOUNT = "pipeline-runner"
"""The account that KFP runs steps as."""
TRAINING_RUNTIME = "celebdit-torch"
"""The ClusterTrainingRuntime of docker/kubernetes."""

SCRATCH_PATH = "/scratch"
SHM_PATH = "/dev/shm"  # noqa: S108 - where torch's workers share memory
IMAGE_USER = 10001
PART_OF = {"app.kubernetes.io/part-of": "celebdit"}
STEP_LABEL = "celebdit.io/step"
"""Label of a step's pods, for network policies and `kubectl get pods -l`."""
RUN_LABEL = "celebdit.io/pipeline-run"
RUN_KEY_LABEL = "celebdit.io/run-key"
