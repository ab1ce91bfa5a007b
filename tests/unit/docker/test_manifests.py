"""What docker/ ships: valid for Kubernetes, restricted, without a value of a secret, and agreeing with the code on every name."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from celebdit_testing.kube_server import difference
from celebdit_testing.postgres import postgres_server
from kubeflow_trainer_api import models as trainer
from sqlalchemy import create_engine

from components import deployment as names
from components.system.ports import free_port
from pipeline.steps import step_named

DOCKER = Path(__file__).parents[3] / "docker"
KUBERNETES = DOCKER / "kubernetes"
OVERLAYS = ("production", "development")
VERSION = ".".join(kubernetes_validate.latest_version().split(".")[:2])
REGISTRIES = re.compile(r"docker\.io|ghcr\.io|quay\.io|gcr\.io|nvcr\.io|pypi\.org|pythonhosted")


def plain_manifests() -> list[Path]:
    return [path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.name != "kustomization.yaml"]


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def validate(document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("trainer.kubeflow.org/"):
        parsed = trainer.TrainerV1alpha1ClusterTrainingRuntime.from_dict(document)
        assert difference(document, json.loads(json.dumps(parsed.to_dict(), default=str)), "") == ""
    else:
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("path", plain_manifests(), ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_every_manifest_is_valid(path: Path) -> None:
    for document in documents(path):
        validate(document)


def test_the_validation_is_strict() -> None:
    (role, *_) = documents(KUBERNETES / "pipeline" / "rbac.yaml")
    with pytest.raises(kubernetes_validate.ValidationError):
        validate({**role, "verb": ["get"]})
    (runtime,) = documents(KUBERNETES / "trainer" / "runtime.yaml")
    runtime["spec"]["template"]["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(AssertionError):
        validate(runtime)


def pod_specs() -> list[Any]:
    specs = []
    for path in plain_manifests():
        for document in documents(path):
            if document["kind"] in ("Deployment", "StatefulSet"):
                specs.append(pytest.param(document["spec"]["template"]["spec"], id=document["metadata"]["name"]))
            if document["kind"] == "ClusterTrainingRuntime":
                (job,) = document["spec"]["template"]["spec"]["replicatedJobs"]
                specs.append(pytest.param(job["template"]["spec"]["template"]["spec"], id=document["metadata"]["name"]))
    return specs


@pytest.mark.parametrize("pod", pod_specs())
def test_every_pod_keeps_the_restricted_pod_security_standard(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "a Service called mlflow would set MLFLOW_PORT"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all({"emptyDir", "configMap", "persistentVolumeClaim"} & set(volume) for volume in pod["volumes"])
    for container in pod["containers"]:
        rules = container["securityContext"]
        assert rules["allowPrivilegeEscalation"] is False
        assert rules["readOnlyRootFilesystem"] is True
        assert rules["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container.get("ports", []))


def test_every_server_has_all_probes() -> None:
    containers = [container for pod in pod_specs() for container in pod.values[0]["containers"] if container["name"] != "node"]
    assert {container["name"] for container in containers} == {"mlflow", "postgres", "s3"}
    for container in containers:
        probes = {name: container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
        assert probes["startupProbe"]["failureThreshold"] * probes["startupProbe"]["periodSeconds"] >= 120
        assert probes["livenessProbe"]["failureThreshold"] * probes["livenessProbe"]["periodSeconds"] >= 60, "slow is not dead"


def test_no_right_is_wider_than_its_verbs_and_none_reads_secrets() -> None:
    roles = [document for path in plain_manifests() for document in documents(path) if document["kind"] in ("Role", "ClusterRole")]
    assert [role["kind"] for role in roles] == ["Role"]
    for rule in roles[0]["rules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert "secrets" not in rule["resources"]


def test_code_and_manifests_agree_on_names() -> None:
    (runtime,) = documents(KUBERNETES / "trainer" / "runtime.yaml")
    assert runtime["metadata"]["name"] == names.TRAINING_RUNTIME
    (nodes,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert nodes["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 300, (
        "where Trainer does not apply the job's own"
    )
    binding = documents(KUBERNETES / "pipeline" / "rbac.yaml")[1]
    assert binding["subjects"][0]["name"] == names.SERVICE_ACCOUNT
    for overlay in OVERLAYS:
        folder = KUBERNETES / "overlays" / overlay
        variables = {line.partition("=")[0] for line in (folder / "celebdit.env").read_text().split()}
        assert set(names.REQUIRED_CONFIG_KEYS) <= variables <= set(names.CONFIG_KEYS)
        generated = {entry["name"]: entry for entry in yaml.safe_load((folder / "kustomization.yaml").read_text())["secretGenerator"]}
        for secret, keys in {**names.SECRET_KEYS, **step_named("ingest").secret_keys}.items():
            assert generated[secret]["namespace"] == "kubeflow"
            (template,) = generated[secret]["envs"]
            lines = (folder / f"{template}.template").read_text().split()
            assert lines == [f"{key}=" for key in keys], "a template names keys and holds no value"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifests with invented secrets, so that none gets into the checkout."""
    folder = tmp_path_factory.mktemp("docker") / "kubernetes"
    shutil.copytree(KUBERNETES, folder, ignore=shutil.ignore_patterns("*.env", "!celebdit.env"))
    for overlay in OVERLAYS:
        for file in ("celebdit.env", "mlflow.env"):
            shutil.copy(KUBERNETES / "overlays" / overlay / file, folder / "overlays" / overlay / file)
    return folder


KEYS = {"AWS_ACCESS_KEY_ID": "canary-key", "AWS_SECRET_ACCESS_KEY": "canary-secret-0123"}


def make_secrets(folder: Path, overlay: str, **environment: str) -> subprocess.CompletedProcess[str]:
    target = folder / "overlays" / overlay / "secrets"
    return subprocess.run(
        ["sh", str(folder / "new-secrets.sh"), str(target)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


def test_secrets_are_made_once_privately_and_never_shown(copy: Path) -> None:
    refused = make_secrets(copy, "production")
    assert refused.returncode != 0
    assert "AWS_ACCESS_KEY_ID" in refused.stderr
    result = make_secrets(copy, "production", **KEYS, KAGGLE_USERNAME="canary-user", KAGGLE_KEY="canary-kaggle-0123")
    assert result.returncode == 0, result.stderr
    assert (copy / "overlays/production/secrets/kaggle.env").read_text() == "KAGGLE_USERNAME=canary-user\nKAGGLE_KEY=canary-kaggle-0123\n"
    files = sorted((copy / "overlays" / "production" / "secrets").glob("*.env"))
    assert [path.name for path in files] == ["hub.env", "kaggle.env", "mlflow-client.env", "mlflow-server.env", "s3.env"]
    for path in files:
        assert path.stat().st_mode & 0o077 == 0
        for line in path.read_text().split():
            assert line.partition("=")[2] not in result.stdout + result.stderr
    before = [path.read_text() for path in files]
    assert make_secrets(copy, "production").returncode == 0
    assert [path.read_text() for path in files] == before


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which builds the overlays, is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_builds_into_valid_objects_with_secrets_in_secrets_alone(copy: Path, overlay: str) -> None:
    assert make_secrets(copy, overlay, **KEYS).returncode == 0
    folder = copy / "overlays" / overlay
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
    objects = list(yaml.safe_load_all(built))
    secrets = {document["metadata"]["name"]: document.get("data", {}) for document in objects if document["kind"] == "Secret"}
    assert set(secrets[names.KAGGLE_SECRET]) <= set(names.KAGGLE_KEYS), "it is there, and may be empty"
    for document in objects:
        validate(document)
        named = document["metadata"].get("namespace")
        assert document["kind"] in ("Namespace", "ClusterTrainingRuntime") or named in ("celebdit", "kubeflow")
    values = [line.partition("=")[2] for path in (folder / "secrets").glob("*.env") for line in path.read_text().split()]
    open_text = yaml.safe_dump_all([document for document in objects if document["kind"] != "Secret"])
    assert not [value for value in values if len(value) > 8 and value in open_text]
    images = re.findall(r"image: (\S+)", built)
    assert images
    assert all("@sha256:" in image for image in images)
    assert ("s3" in [document["metadata"]["name"] for document in objects]) == (overlay == "development")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which builds the overlays, is not installed")
def test_an_overlay_does_not_build_without_its_secrets(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("s3.env", "mlflow-*.env"))
    built = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "kubernetes/overlays/development")], capture_output=True, text=True, check=False
    )
    assert built.returncode != 0
    assert "secrets/s3.env" in built.stderr


def test_no_file_of_docker_names_a_registry_or_an_index() -> None:
    for path in DOCKER.rglob("*"):
        if path.is_file() and path.suffix != ".pyc" and not path.name.endswith(".env"):
            assert not REGISTRIES.search(path.read_text()), path


def test_a_team_without_a_cluster_gets_the_secrets_of_its_servers_alone(tmp_path: Path) -> None:
    result = subprocess.run(["sh", str(KUBERNETES / "new-secrets.sh"), str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow-client.env", "mlflow-server.env", "s3.env"]


def test_compose_reads_secrets_from_files_alone_and_publishes_to_this_machine_only() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    secret = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_KEY|BACKEND_STORE_URI")
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["image"].startswith("${"), "images come by digest from whoever starts it"
        assert all(port.startswith("${CELEBDIT_LISTEN:-127.0.0.1}:") for port in service.get("ports", []))
        assert not [key for key in service["environment"] if secret.search(key)], "a value here would be on podman's command line"
    files = {name: service["env_file"] for name, service in services.items()}
    assert files == {
        "postgres": ["secrets/mlflow-server.env"],
        "s3": ["secrets/s3.env"],
        "mlflow": ["secrets/mlflow-server.env", "secrets/s3.env"],
    }


def test_the_guide_names_every_variable_and_every_file_of_secrets() -> None:
    guide = (DOCKER.parent / "docs" / "kubernetes.md").read_text()
    variables = set(re.findall(r"(?<!\$)\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    assert len(variables) > 4
    files = {path.name.removesuffix(".template") for path in KUBERNETES.rglob("*.env.template")}
    assert files == {"s3.env", "mlflow-server.env", "mlflow-client.env", "kaggle.env", "hub.env"}
    missing = [name for name in (*variables, *files, *names.KAGGLE_KEYS, "POSTGRES_ADDRESS") if f"`{name}" not in guide]
    assert not missing


def test_mlflow_does_not_start_without_its_secrets(tmp_path: Path) -> None:
    complete = {
        "POSTGRES_PASSWORD": "canary-postgres-0123",
        "MLFLOW_ADMIN_PASSWORD": "canary-password-0123",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-key-0123",
        "MLFLOW_ARTIFACTS": "s3://mlflow/artifacts",
    }
    tell = 'printf "%s\\n" "$@"; echo "-- environment"; env; cat "$MLFLOW_AUTH_CONFIG_PATH"; stat -c %a "$MLFLOW_AUTH_CONFIG_PATH"'
    (tmp_path / "mlflow").write_text(f"#!/bin/sh\n{tell}\n")
    (tmp_path / "mlflow").chmod(0o755)

    def start(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        path = {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin", "TMPDIR": str(tmp_path), "POSTGRES_WAIT_S": "0"}
        script = KUBERNETES / "servers" / "start-mlflow.sh"
        return subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False, env={**path, **environment})

    for missing in complete:
        refused = start({key: value for key, value in complete.items() if key != missing})
        assert refused.returncode == 2
        named = "MLFLOW_BACKEND_STORE_URI" if missing == "POSTGRES_PASSWORD" else missing
        assert refused.stderr.startswith(f"start-mlflow: {named} is not set")
    for name in ("POSTGRES_PASSWORD", "MLFLOW_ADMIN_PASSWORD"):
        for odd in ("canary%0123456789", "canary@0123456789", "canary\n0123456789", "canary 0123456789"):
            refused = start({**complete, name: odd})
            assert (refused.returncode, refused.stderr) == (2, f"start-mlflow: {name} may have letters, digits and ._~- alone\n")
    assert "12 characters" in start({**complete, "MLFLOW_ADMIN_PASSWORD": "short"}).stderr
    started = start(complete)
    arguments = started.stdout.split("-- environment")[0]
    assert "--app-name\nbasic-auth" in arguments
    assert "canary" not in arguments
    assert "admin_password = canary-password-0123" in started.stdout
    assert started.stdout.rstrip().endswith("600")
    match = re.search(r"^MLFLOW_BACKEND_STORE_URI=(.*)$", started.stdout, re.MULTILINE)
    assert match, "MLflow reads its database from the environment"
    assert match[1] == "postgresql+psycopg2://mlflow:canary-postgres-0123@postgres:5432/mlflow"
    create_engine(match[1])  # needs the driver that the address names, of those that the pins bring


SERVICE_LINKS = {
    "MLFLOW_PORT": "tcp://10.96.0.7:5000",
    "MLFLOW_PORT_5000_TCP": "tcp://10.96.0.7:5000",
    "POSTGRES_PORT": "tcp://10.96.0.8:5432",
    "S3_PORT": "tcp://10.96.0.9:9000",
}


def start_mlflow(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the start script with a program in MLflow's place that prints its arguments and the environment."""
    (folder / "mlflow").write_text('#!/bin/sh\nprintf "%s\\n" "$@"; env\n')
    (folder / "mlflow").chmod(0o755)
    complete = {
        "PATH": f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "TMPDIR": str(folder),
        "POSTGRES_PASSWORD": "canary-postgres-0123",
        "MLFLOW_ADMIN_PASSWORD": "canary-password-0123",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-key-0123",
        "MLFLOW_ARTIFACTS": "s3://mlflow/artifacts",
    }
    script = KUBERNETES / "servers" / "start-mlflow.sh"
    return subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False, env={**complete, **environment})


def test_the_variables_of_services_do_not_reach_mlflow(tmp_path: Path) -> None:
    started = start_mlflow(tmp_path, POSTGRES_WAIT_S="0", **SERVICE_LINKS)
    assert started.returncode == 0, started.stderr
    assert "tcp://" not in started.stdout
    assert "--port\n5000\n" in started.stdout
    assert "--port\n5011\n" in start_mlflow(tmp_path, POSTGRES_WAIT_S="0", MLFLOW_PORT="5011").stdout


def test_mlflow_waits_for_its_database_and_says_so(tmp_path: Path) -> None:
    absent = f"127.0.0.1:{free_port()}"
    refused = start_mlflow(tmp_path, POSTGRES_ADDRESS=absent, POSTGRES_WAIT_S="3")
    assert refused.returncode == 1
    assert refused.stdout == "", "MLflow was not started"
    assert refused.stderr.count("start-mlflow: waiting for the database: ") >= 1
    assert "start-mlflow: the database did not answer within 3 s" in refused.stderr
    assert "canary" not in refused.stderr


def test_a_database_that_comes_later_is_used_and_a_wrong_password_ends_at_once(tmp_path: Path) -> None:
    with postgres_server("canary-postgres-0123") as address:
        started = start_mlflow(tmp_path, POSTGRES_ADDRESS=address)
        assert (started.returncode, started.stderr) == (0, "")
        started_s = time.monotonic()
        refused = start_mlflow(tmp_path, POSTGRES_ADDRESS=address, POSTGRES_PASSWORD="canary-another-0123")
        assert refused.returncode == 1
        assert "start-mlflow: the database refuses the password" in refused.stderr
        assert "canary" not in refused.stderr
        assert time.monotonic() - started_s < 60
