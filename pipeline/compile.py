"""The graph as KFP YAML for a cluster: the same steps, dressed with resources, secrets, retries and scratch space.

Promises: the same configuration gives the same bytes; no secret value and no tag-only image gets into the YAML unless asked for by hand.
How it is submitted is not known here.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kfp import compiler, kubernetes
from kfp.dsl import PipelineTask

from components.image import CPU_IMAGE, GPU_IMAGE
from pipeline.config import RunConfig
from pipeline.graph import HEAVY_STEPS, build_graph

S3_SECRET = "celebdit-s3"
MLFLOW_SECRET = "celebdit-mlflow"
CONFIG_MAP = "celebdit-config"
_SECRETS = {
    S3_SECRET: {"AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY"},
    MLFLOW_SECRET: {"MLFLOW_TRACKING_USERNAME": "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD": "MLFLOW_TRACKING_PASSWORD"},
}
_CONFIG_KEYS = ("CELEBDIT_STORE", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_REGION", "CELEBDIT_EXPERIMENT")
_RETRIES = {"train": 10}
_RETRY_WINDOW = "1000h"


@dataclass(frozen=True)
class Images:
    """The two images, ideally by digest."""

    cpu: str = CPU_IMAGE
    gpu: str = GPU_IMAGE


def compile_pipeline(config: RunConfig, target: Path, *, images: Images, preset: str) -> None:
    """Write the pipeline for `config` to `target`; the file appears when it is complete."""

    def dress(step: str, task: PipelineTask) -> None:
        _dress(step, task, config, images, preset)

    with tempfile.TemporaryDirectory(dir=target.absolute().parent) as folder:
        draft = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(build_graph(config.sections(), dress), str(draft))
        draft.replace(target)


def _dress(step: str, task: PipelineTask, config: RunConfig, images: Images, preset: str) -> None:
    heavy = step in HEAVY_STEPS
    resources = config.resources
    task.set_container_image(images.gpu if heavy else images.cpu)
    for secret, keys in _SECRETS.items():
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=keys, optional=True)
    kubernetes.use_config_map_as_env(
        task, config_map_name=CONFIG_MAP, config_map_key_to_env={key: key for key in _CONFIG_KEYS}, optional=True
    )
    kubernetes.use_field_path_as_env(task, env_name="CELEBDIT_RUN_ID", field_path="metadata.labels['pipeline/runid']")
    task.set_env_variable("CELEBDIT_PRESET", preset)
    task.set_env_variable("CELEBDIT_WORK_DIR", "/scratch")
    kubernetes.empty_dir_mount(task, volume_name="scratch", mount_path="/scratch")
    task.set_cpu_request(resources.cpu if heavy else "1")
    task.set_memory_limit(resources.memory if heavy else "4Gi")
    # Every step finds its own finished work, so KFP's cache could only hide that something was deleted.
    task.set_caching_options(enable_caching=False)
    if step != "finalize":
        # Without backoff_max_duration KFP stops retrying one hour after the first attempt, whatever the number of retries (2.17).
        task.set_retry(_RETRIES.get(step, 3), backoff_duration="30s", backoff_factor=2.0, backoff_max_duration=_RETRY_WINDOW)
    if heavy:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=resources.shm)
        if resources.device != "cpu":
            task.set_accelerator_type(resources.gpu_type).set_accelerator_limit(resources.processes)


def load_images(lock: Path | None) -> Images:
    """Return the images recorded in a lock file, or the local names."""
    if lock is None:
        return Images()
    recorded = json.loads(lock.read_text())
    return Images(cpu=recorded["cpu"], gpu=recorded["gpu"])
