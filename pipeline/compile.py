"""Compile the graph to KFP YAML: adds images, resources, secrets and retries to each task.

Promises: the same configuration and images give the same bytes; a pipeline that `pipeline/lint.py` refuses is never written; images are
referenced by digest and secrets by name. Does not submit; see `submit.py`.
"""

import hashlib
import re
import tempfile
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kfp import compiler, kubernetes
from kfp.dsl import PipelineConfig, PipelineTask

from components import deployment
from components.environment import IMAGE, IMAGE_DIGEST, LOG_LEVEL, NAMESPACE, POD, PRESET, RUN_ID, SERVICE_ACCOUNT, WORK_DIR
from components.errors import BadInput
from components.resources import ResourcesConfig
from pipeline.config import RunConfig
from pipeline.graph import build_graph
from pipeline.images import Images
from pipeline.lint import require_clean
from pipeline.resolution import graph_differences
from pipeline.steps import LastStep, Step

_QUEUED_H = 8760
"""Hours that a step may wait for its TrainJob in a queue; the TrainJob has a time-out of its own, which runs while it is not suspended."""
# Without backoff_max_duration KFP stops retrying one hour after the first attempt, whatever the number of retries (2.17).
_RETRY_WINDOW = "1000h"


@dataclass(frozen=True)
class CompileOptions:
    """Inputs of a compiled pipeline other than its configuration."""

    images: Images
    preset: str
    cached: Collection[str] = ()
    """Steps that KFP may skip if they ran with the same inputs before. None by default: every step reuses its own finished work, and a
    skipped step logs nothing to MLflow for this run."""
    others: Mapping[str, RunConfig] = field(default_factory=dict)
    """Further presets that the form of the pipeline offers, by name; their pods are the same."""
    log_level: str | None = None
    """Level to log at in every step; None for the steps' own."""
    last_step: LastStep = "register"
    paused: Collection[str] = ()
    """Steps whose pod stays after their command has ended, until it is released, for a person who looks into it."""


def compile_pipeline(config: RunConfig, target: Path, options: CompileOptions) -> str:
    """Write the pipeline for `config` to `target` and return the sha256 of its bytes; the file appears when it is complete.

    Raises:
        BadInput: with every rule of `pipeline/lint.py` that the pipeline breaks, if the presets of `options` need other pods, or if KFP
            would skip a training whose teacher was trained further.
    """
    for configuration in (config, *options.others.values()):
        _require_weights_of_teacher(configuration, options.cached)
    for name, other in options.others.items():
        if differences := graph_differences(config.resources, other.resources):
            settings = "; ".join(line.partition(" needs another")[0] for line in differences)
            raise BadInput(
                f"{name} and {options.preset} need different pods: {name} has {settings}", hint="compile them to two files, or override it"
            )
    with tempfile.TemporaryDirectory(dir=target.absolute().parent) as folder:
        draft = Path(folder) / "pipeline.yaml"
        # kfp inspects the whole call stack for each setting of a task; a new thread keeps that stack short, also in notebooks and tests.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_write, config, draft, options).result()
        content = draft.read_bytes()
        require_clean(content.decode())
        draft.replace(target)
    return hashlib.sha256(content).hexdigest()


def _require_weights_of_teacher(config: RunConfig, cached: Collection[str]) -> None:
    """Refuse to cache the train step of a student whose teacher's weights are not named in full: KFP compares the text of the settings."""
    distill = config.distill
    if "train" in cached and distill.teacher is not None and None in (distill.teacher_step, distill.teacher_ema):
        raise BadInput(
            f"--cache train needs the step of distill.teacher {distill.teacher} and its average, distill.teacher_ema: KFP would skip the "
            "training even if the teacher was trained further",
            hint=f"set distill.teacher={distill.teacher_run}@STEP and distill.teacher_ema='\"SIGMA_REL\"', or leave out --cache train",
        )


def _write(config: RunConfig, draft: Path, options: CompileOptions) -> None:
    presets = {options.preset: config.sections(), **{name: other.sections() for name, other in options.others.items()}}
    graph = build_graph(
        presets,
        lambda step, task: configure_task(step, task, config.resources, options),
        _pipeline_config(config.resources),
        last_step=options.last_step,
    )
    compiler.Compiler().compile(graph, str(draft))


def _pipeline_config(resources: ResourcesConfig) -> PipelineConfig | None:
    """Return what is set for the run as a whole, or None if nothing is: a server before KFP 2.17 does not know the settings."""
    hours = {"active_deadline_seconds": resources.run_timeout_h, "ttl_seconds_after_finished": resources.keep_run_h}
    seconds = {name: 3600 * value for name, value in hours.items() if value is not None}
    return PipelineConfig(**seconds) if seconds else None


def label_value(text: str) -> str:
    """Return `text` as the value of a Kubernetes label."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.") or "none"


def configure_task(step: Step, task: PipelineTask, resources: ResourcesConfig, options: CompileOptions) -> None:
    """Add to `task` what `step` needs on a cluster: image, settings, space, identity, devices, time-out and retries."""
    here = step.on_nodes(resources.nodes)
    image = options.images.gpu if here.image == "gpu" else options.images.cpu
    task.set_container_image(image)
    if not options.others:
        task.set_env_variable(PRESET, options.preset)
    task.set_env_variable(IMAGE_DIGEST, image.partition("@")[2])
    task.set_env_variable(IMAGE, options.images.gpu)
    if options.log_level is not None:
        task.set_env_variable(LOG_LEVEL, options.log_level)
    _set_env(step, task)
    _set_resources(task, resources, heavy=here.heavy)
    _set_security(task)
    _set_labels(step, task, resources, options)
    task.set_caching_options(enable_caching=step.name in options.cached)
    kubernetes.set_timeout(task, seconds=3600 * _timeout_h(step, resources))
    if step.retries:
        task.set_retry(step.retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration=_RETRY_WINDOW)
    if here.heavy:
        _set_accelerators(task, resources)
    if step.name in options.paused:
        # After success, too: Argo (4.0) does not know the variable that KFP (2.17) sets for a pause on errors alone.
        task.set_debug_pause()


def _set_env(step: Step, task: PipelineTask) -> None:
    """Set endpoints and credentials by reference; all optional, because a pod hangs on a missing Secret while a step reports it."""
    for secret, keys in {**deployment.SECRET_KEYS, **step.secret_keys}.items():
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env={key: key for key in keys}, optional=True)
    settings = {key: key for key in deployment.config_keys(step.name)}
    kubernetes.use_config_map_as_env(task, config_map_name=deployment.CONFIG_MAP, config_map_key_to_env=settings, optional=True)
    kubernetes.use_secret_as_volume(
        task, secret_name=deployment.CERTIFICATES_SECRET, mount_path=deployment.CERTIFICATES_PATH, optional=True
    )
    kubernetes.use_field_path_as_env(task, env_name=RUN_ID, field_path="metadata.labels['pipeline/runid']")
    kubernetes.use_field_path_as_env(task, env_name=NAMESPACE, field_path="metadata.namespace")
    kubernetes.use_field_path_as_env(task, env_name=POD, field_path="metadata.name")
    kubernetes.use_field_path_as_env(task, env_name=SERVICE_ACCOUNT, field_path="spec.serviceAccountName")


def _set_resources(task: PipelineTask, resources: ResourcesConfig, *, heavy: bool) -> None:
    task.set_env_variable(WORK_DIR, deployment.SCRATCH_PATH)
    kubernetes.empty_dir_mount(task, volume_name="scratch", mount_path=deployment.SCRATCH_PATH, size_limit=resources.scratch)
    task.set_cpu_request(resources.cpu if heavy else resources.light_cpu)
    memory = resources.memory if heavy else resources.light_memory
    task.set_memory_request(memory)
    task.set_memory_limit(memory)
    if heavy:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path=deployment.SHM_PATH, medium="Memory", size_limit=resources.shm)


def _timeout_h(step: Step, resources: ResourcesConfig) -> int:
    if step.starts_trainjob and resources.nodes > 1 and resources.queue is not None:
        return _QUEUED_H
    return resources.timeout_h if step.timeout_h is None else step.timeout_h


def _set_security(task: PipelineTask) -> None:
    kubernetes.set_security_context(task, run_as_user=deployment.IMAGE_USER, run_as_group=deployment.IMAGE_USER, run_as_non_root=True)


def _set_labels(step: Step, task: PipelineTask, resources: ResourcesConfig, options: CompileOptions) -> None:
    own = {**deployment.PART_OF, deployment.STEP_LABEL: step.name, "celebdit.io/preset": label_value(options.preset)}
    for key, value in {**resources.site_labels, **own}.items():
        kubernetes.add_pod_label(task, label_key=key, label_value=value)
    for key, value in resources.annotations.items():
        kubernetes.add_pod_annotation(task, annotation_key=key, annotation_value=value)


def _set_accelerators(task: PipelineTask, resources: ResourcesConfig) -> None:
    for key, value in resources.node_selector.items():
        kubernetes.add_node_selector(task, label_key=key, label_value=value)
    for toleration in resources.all_tolerations:
        kubernetes.add_toleration(task, key=toleration.key, operator=toleration.operator, value=toleration.value, effect=toleration.effect)
    if resources.on_gpus:
        task.set_accelerator_type(resources.gpu_type).set_accelerator_limit(resources.processes)
