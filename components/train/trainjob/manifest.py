"""The TrainJob of a training, as plain JSON for Kubeflow Trainer.

Promises: pure; secrets are referenced, never contained; the same training with the same resources has the same settings digest in every
attempt. Settings common to all trainings are in the ClusterTrainingRuntime of docker/kubernetes.
"""

from components import deployment as names
from components.environment import GIT_COMMIT, IMAGE_DIGEST, LOG_LEVEL, PRESET, RUN_ID, RUN_URL, WORK_DIR
from components.kube.objects import KubernetesObject
from components.settings import Settings
from components.train.spec import TrainSpec
from components.train.trainjob.grace import STOP_MARGIN_S, save_s
from model.canonical import digest_of

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
CONTAINER = "node"
SETTINGS_ANNOTATION = "celebdit.io/settings-sha256"


def job_name(run_key: str) -> str:
    """Return the name of the one TrainJob of a run; short enough for the names of its pods."""
    return f"celebdit-{run_key}"


def trainjob(spec: TrainSpec, spec_uri: str, image: str, settings: Settings, *, owners: list[KubernetesObject]) -> KubernetesObject:
    """Return the TrainJob for `spec` as plain JSON."""
    body: KubernetesObject = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": names.TRAINING_RUNTIME},
        "trainer": {
            "image": image,
            "numNodes": spec.resources.nodes,
            "numProcPerNode": spec.resources.processes,
            "command": ["python", "-m", "components.train.trainjob.node"],
            "env": _environment(settings),
            "resourcesPerNode": _resources(spec),
        },
        "runtimePatches": [
            {"manager": "celebdit.io/pipeline", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [_pods(spec, settings)]}}}}
        ],
        "activeDeadlineSeconds": 3600 * spec.resources.timeout_h,
    }
    # The labels and annotations, too: another queue or priority is another job.
    digest = digest_of({**body, **({"site": site} if (site := {**spec.resources.site_labels, **spec.resources.annotations}) else {})})
    # Not part of the digest, because each attempt has its own file.
    body["trainer"]["args"] = [spec_uri, str(save_s(spec))]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(spec.run_key),
            "labels": {
                **spec.resources.site_labels,
                **names.PART_OF,
                names.STEP_LABEL: "train",
                names.RUN_KEY_LABEL: spec.run_key,
                names.RUN_LABEL: settings.pipeline_run_id,
            },
            "annotations": {**spec.resources.annotations, SETTINGS_ANNOTATION: digest},
            **({"ownerReferences": owners} if owners else {}),
        },
        "spec": body,
    }


def _environment(settings: Settings) -> list[KubernetesObject]:
    """Return the environment of the nodes: identity by value, endpoints and credentials by reference."""
    identity = {
        WORK_DIR: names.SCRATCH_PATH,
        RUN_ID: settings.pipeline_run_id,
        RUN_URL: settings.run_url,
        PRESET: settings.preset,
        GIT_COMMIT: settings.git_commit,
        IMAGE_DIGEST: settings.image_digest,
        LOG_LEVEL: settings.log_level,
    }
    entries: list[KubernetesObject] = [{"name": name, "value": value} for name, value in identity.items() if value is not None]
    for secret, keys in names.SECRET_KEYS.items():
        entries += [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}} for key in keys]
    for key in names.config_keys("train"):
        entries.append({"name": key, "valueFrom": {"configMapKeyRef": {"name": names.CONFIG_MAP, "key": key, "optional": True}}})
    return entries


def _resources(spec: TrainSpec) -> KubernetesObject:
    resources = spec.resources
    gpus = {resources.gpu_type: str(resources.processes)} if resources.on_gpus else {}
    return {"requests": {"cpu": resources.cpu, "memory": resources.memory, **gpus}, "limits": {"memory": resources.memory, **gpus}}


def _pods(spec: TrainSpec, settings: Settings) -> KubernetesObject:
    """Return the patch of the runtime's pods: account, time to stop, node selection and volumes."""
    resources = spec.resources
    pod: KubernetesObject = {
        "terminationGracePeriodSeconds": save_s(spec) + STOP_MARGIN_S,
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": resources.scratch}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": resources.shm}},
            {"name": "certificates", "secret": {"secretName": names.CERTIFICATES_SECRET, "optional": True}},
        ],
        "containers": [
            {
                "name": CONTAINER,
                "volumeMounts": [
                    {"name": "scratch", "mountPath": names.SCRATCH_PATH},
                    {"name": "shm", "mountPath": names.SHM_PATH},
                    {"name": "certificates", "mountPath": names.CERTIFICATES_PATH, "readOnly": True},
                ],
            }
        ],
    }
    if settings.service_account is not None:
        pod["serviceAccountName"] = settings.service_account
    if resources.node_selector:
        pod["nodeSelector"] = dict(resources.node_selector)
    if resources.all_tolerations:
        pod["tolerations"] = [toleration.model_dump(exclude_none=True) for toleration in resources.all_tolerations]
    # Not Kueue's: the queue admits the TrainJob as a whole.
    metadata: KubernetesObject = {"labels": {**resources.labels, **names.PART_OF, names.STEP_LABEL: "train"}}
    if resources.annotations:
        metadata["annotations"] = dict(resources.annotations)
    return {"name": CONTAINER, "template": {"spec": {"template": {"metadata": metadata, "spec": pod}}}}
