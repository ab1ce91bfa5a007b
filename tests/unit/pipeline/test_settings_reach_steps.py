"""Every setting of the table reaches the processes that need it: pods of Kubeflow, nodes of a TrainJob, containers, and child processes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from celebdit_testing.trainjobs import IMAGE, spec_of

from components import deployment as names
from components.environment import SECRETS, VARIABLES, pod_variables
from components.environment_variable import CONFIG_MAP, HUB_SECRET, KAGGLE_SECRET, MLFLOW_SECRET, S3_SECRET, Variable
from components.settings import Settings
from components.system.child_environment import Kind, child_environment
from components.train.trainjob.manifest import trainjob
from pipeline.compile import CompileOptions, compile_pipeline
from pipeline.config import load_config
from pipeline.containers import container_arguments, plan_containers
from pipeline.images import Images
from pipeline.steps import step_names

IN_PODS = [variable for variable in VARIABLES if variable.pods]
REQUIRED = {
    *("AWS_S3_ADDRESSING_STYLE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_SERVER_CERT_PATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
    *("CELEBDIT_STORAGE_DEADLINE_S", "CELEBDIT_STORE", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_REGION", "REQUESTS_CA_BUNDLE"),
}
IMAGES = Images(cpu="registry.example/cpu@sha256:" + "a" * 64, gpu="registry.example/gpu@sha256:" + "b" * 64)
SETTINGS = {"CELEBDIT_STORE": "s3://bucket/x", "MLFLOW_TRACKING_URI": "http://mlflow", "CELEBDIT_RUN_ID": "r-1"}
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Origin:
    """Where a process of the cluster gets a variable from."""

    kind: str
    name: str
    key: str
    optional: bool


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Origin]]:
    """The environment of each step's pod by reference, as the compiled pipeline has it."""
    target = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(load_config("smoke"), target, CompileOptions(images=IMAGES, preset="smoke"))
    _, platform = yaml.load_all(target.read_text(), yaml.CSafeLoader)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {step: _origins(executors[f"exec-{step}"]) for step in step_names()}


def _origins(executor: dict[str, Any]) -> dict[str, Origin]:
    return {
        entry["envVar"]: Origin(kind, source[f"{kind}Name"], entry[f"{kind}Key"], source["optional"])
        for kind in ("secret", "configMap")
        for source in executor[f"{kind}AsEnv"]
        for entry in source["keyToEnv"]
    }


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    settings = Settings.from_environment({**SETTINGS, "CELEBDIT_SERVICE_ACCOUNT": "faces"})
    return trainjob(spec_of(), "s3://bucket/x/spec.json", IMAGE, settings, owners=[])


@pytest.fixture(scope="module")
def nodes(job: dict[str, Any]) -> dict[str, Origin]:
    """The environment of a TrainJob's nodes by reference."""
    return {
        entry["name"]: Origin(kind, reference["name"], reference["key"], reference["optional"])
        for entry in job["spec"]["trainer"]["env"]
        for kind in ("secret", "configMap")
        if (reference := entry.get("valueFrom", {}).get(f"{kind}KeyRef"))
    }


SOURCES: dict[str | None, str] = {KAGGLE_SECRET: "kaggle://owner/faces", HUB_SECRET: "hf://datasets/owner/faces"}
"""Secret -> a source that needs it: only the ingest step gets its keys."""


def origin_of(variable: Variable) -> Origin:
    assert variable.pods is not None
    return Origin("configMap" if variable.pods == CONFIG_MAP else "secret", variable.pods, variable.name, True)


def test_the_settings_that_a_cluster_needs_are_in_the_table() -> None:
    assert {variable.name for variable in IN_PODS} >= REQUIRED
    assert {variable.pods for variable in IN_PODS} == {CONFIG_MAP, S3_SECRET, MLFLOW_SECRET, KAGGLE_SECRET, HUB_SECRET}
    assert {variable.name for variable in IN_PODS if variable.secret} == SECRETS & {variable.name for variable in IN_PODS}
    assert not [variable.name for variable in IN_PODS if variable.secret and variable.pods == CONFIG_MAP]
    assert [variable.name for variable in VARIABLES if variable.group == "servers" and not variable.pods] == []


@pytest.mark.parametrize("variable", IN_PODS, ids=lambda variable: variable.name)
def test_a_setting_reaches_every_process_that_needs_it(
    variable: Variable, pods: dict[str, dict[str, Origin]], nodes: dict[str, Origin], tmp_path: Path
) -> None:
    needing = variable.steps or tuple(step_names())
    assert {step for step, environment in pods.items() if variable.name in environment} == set(needing)
    assert {pods[step][variable.name] for step in needing} == {origin_of(variable)}
    assert nodes.get(variable.name) == (origin_of(variable) if "train" in needing else None)
    value = str(tmp_path / "file.pem") if variable.is_file else "canary"
    (tmp_path / "file.pem").touch()
    shell = {**SETTINGS, "CELEBDIT_WORK_DIR": str(tmp_path / "work"), variable.name: value}
    source = SOURCES.get(variable.pods, "synthetic://?count=4")
    plan = plan_containers(load_config("smoke", [f"data.source={source}"]), tmp_path / "run", shell, run_id="run-1")
    arguments = container_arguments(plan, shell, user_id=1000)
    assert arguments["environment"][variable.name] == value
    if variable.is_file:
        assert {mount["Target"]: mount["ReadOnly"] for mount in arguments["mounts"]}[value] is True
    assert child_environment("step", shell)[variable.name] == value
    assert child_environment("rank", shell).get(variable.name) == (None if variable.pods in SOURCES else value)
    kinds: tuple[Kind, ...] = ("decoder", "server", "serving") if variable.secret else ("decoder",)
    assert not [kind for kind in kinds if variable.name in child_environment(kind, shell)]
    page = (ROOT / "docs" / "environment.md").read_text()
    assert re.search(rf"^\| `{variable.name}` \|.*`{variable.pods}`.*\|$", page, re.MULTILINE)


def test_no_pod_gets_what_the_table_does_not_name(pods: dict[str, dict[str, Origin]], nodes: dict[str, Origin]) -> None:
    for step, environment in pods.items():
        assert set(environment) == {variable.name for variable in IN_PODS if not variable.steps or step in variable.steps}
    assert set(nodes) == set(pods["train"])


def test_the_variables_of_a_workload_identity_are_left_to_the_webhook_of_the_cloud(pods: dict[str, dict[str, Origin]]) -> None:
    """It sets them only in a pod that does not name them."""
    for name in ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        assert not [step for step, environment in pods.items() if name in environment]
        assert child_environment("rank", {name: "/token"})[name] == "/token"
        assert child_environment("container", {name: "/token"})[name] == "/token"


def test_nodes_run_as_the_account_of_the_step_and_see_the_certificates(job: dict[str, Any]) -> None:
    (replicated,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "faces"
    assert {"name": "certificates", "secret": {"secretName": names.CERTIFICATES_SECRET, "optional": True}} in pod["volumes"]
    (container,) = pod["containers"]
    assert {"name": "certificates", "mountPath": names.CERTIFICATES_PATH, "readOnly": True} in container["volumeMounts"]
    alone = trainjob(spec_of(), "s3://b/spec.json", IMAGE, Settings.from_environment(SETTINGS), owners=[])
    assert "serviceAccountName" not in str(alone)


def test_variables_of_one_source_keep_their_order() -> None:
    assert pod_variables(S3_SECRET) == ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    assert pod_variables(MLFLOW_SECRET) == ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
