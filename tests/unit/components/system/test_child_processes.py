"""What child processes import and know: nothing from the folder that they are started in, and of the environment what they need."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from components.environment import SECRETS
from components.system.child_environment import NEEDED, Kind, child_environment

ROOT = Path(__file__).parents[4]
STARTERS = {"Popen", "run", "call", "check_call", "check_output", "getoutput", "execv", "execve", "execvp", "posix_spawn", "system"}

OF_THE_SHELL = {
    "PATH": "/usr/bin",
    "HOME": "/home/somebody",
    "LANG": "C.UTF-8",
    "CELEBDIT_STORE": "s3://bucket/x",
    "CELEBDIT_RUN_ID": "run-1",
    "CELEBDIT_WORK_DIR": "/work",
    "CELEBDIT_OWN_SERVERS": "0 5000",
    "NETRC": "/dev/null",
    "no_proxy": "127.0.0.1",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
    "MLFLOW_TRACKING_TOKEN": "canary-token",
    "AWS_ACCESS_KEY_ID": "canary-id",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "AWS_SESSION_TOKEN": "canary-session",
    "AWS_PROFILE": "canary-profile",
    "HTTPS_PROXY": "http://user:canary-proxy@proxy:3128",
    "CELEBDIT_KFP_TOKEN": "canary-kfp",
    "CELEBDIT_KFP_COOKIES": "a=canary-cookie",
    "CELEBDIT_WEBHOOK_URL": "https://canary-hook",
    "CELEBDIT_S3_SECRET": "canary-embedded",
    "CELEBDIT_MLFLOW_TOKEN": "canary-embedded-token",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-flask",
    "MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow:canary-database@db",
    "MLFLOW_AUTH_CONFIG_PATH": "/canary-auth",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "canary-admin",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "canary-webhooks",
    "KAGGLE_KEY": "canary-kaggle",
    "HF_TOKEN": "canary-hub",
    "GITHUB_TOKEN": "canary-github",
    "SSH_AUTH_SOCK": "/canary-agent",
    "OPENAI_API_KEY": "canary-openai",
    "PYTHONSTARTUP": "canary.py",
    "PYTHONINSPECT": "canary",
    "PYTHONWARNINGS": "error::canary.Warning",
    "BASH_ENV": "canary.sh",
}
STORAGE = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
ALLOWED: dict[Kind, set[str]] = {
    "decoder": set(),
    "server": set(),
    "serving": set(),
    "measurement": set(),
    "container": {*STORAGE, "MLFLOW_TRACKING_TOKEN", "HTTPS_PROXY"},
    "rank": {*STORAGE, "AWS_PROFILE", "MLFLOW_TRACKING_TOKEN", "HTTPS_PROXY"},
    "step": {*STORAGE, "AWS_PROFILE", "MLFLOW_TRACKING_TOKEN", "HTTPS_PROXY", "KAGGLE_KEY", "HF_TOKEN"},
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("model", "components", "pipeline"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def users_of(owner: str, names: set[str]) -> set[str]:
    return {
        path
        for path, module in sources()
        for node in ast.walk(module)
        if (isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name) and node.value.id == owner)
        or (isinstance(node, ast.ImportFrom) and node.module == owner and names & {alias.name for alias in node.names})
    }


def test_the_interpreter_is_named_in_one_place() -> None:
    assert users_of("sys", {"executable", "_base_executable", "orig_argv"}) == {"components/system/python_process.py"}


def test_processes_are_started_in_few_places_each_known() -> None:
    known = {
        "components/system/process.py": "`spawn`",
        "components/system/guarded.py": "the guardian of a run",
        "components/ingest/decoding/worker.py": "the decoders",
        "components/ingest/sources/reader_process.py": "the readers of tar archives and parquet files",
        "components/system/confinement.py": "a process that tries to confine itself",
        "pipeline/images.py": "docker or podman, to look at images",
        "pipeline/image_engines.py": "docker or podman, to build images",
        "pipeline/image_inputs.py": "uv, to pin wheels for CPUs",
        "pipeline/session.py": "git",
        "pipeline/server_process.py": "the embedded servers",
        "pipeline/inherited_socket.py": "becomes the S3 server",
        "pipeline/mlflow_schema.py": "MLflow's migrations, for `make schema`",
        "pipeline/planning/local_speed.py": "the measurement of a CPU",
    }
    started = users_of("subprocess", STARTERS) | users_of("os", STARTERS) | users_of("multiprocessing", {"Process", "Pool"})
    assert started == set(known)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_child_gets_no_secret_but_those_that_it_needs(kind: Kind) -> None:
    environment = child_environment(kind, OF_THE_SHELL)
    assert {name for name, value in environment.items() if "canary" in value} == ALLOWED[kind]


def test_every_secret_of_the_table_stays_with_those_who_need_it() -> None:
    secrets = dict.fromkeys(SECRETS, "canary")
    assert not [
        name
        for kind in ("decoder", "server", "serving", "measurement")
        for name, value in child_environment(kind, secrets).items()
        if value == "canary"
    ]
    of_commands = {name for name in SECRETS if name.startswith("CELEBDIT_")}
    assert of_commands, "there are secrets that only a command needs"
    assert not of_commands & {name for kind in NEEDED for name in child_environment(kind, secrets)}


@pytest.mark.parametrize("kind", ["rank", "step", "container"])
def test_processes_of_a_run_know_their_run_and_servers(kind: Kind) -> None:
    environment = child_environment(kind, OF_THE_SHELL)
    wanted = {"CELEBDIT_STORE", "CELEBDIT_RUN_ID", "CELEBDIT_WORK_DIR", "MLFLOW_TRACKING_URI", "CELEBDIT_OWN_SERVERS", "NETRC", "no_proxy"}
    assert {name: OF_THE_SHELL[name] for name in wanted}.items() <= environment.items()


@pytest.mark.parametrize("path", [".", "", ".:", ":/elsewhere", "/elsewhere:..", "images:/elsewhere"])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_no_python_child_imports_from_a_relative_folder(kind: Kind, path: str) -> None:
    environment = child_environment(kind, {"PYTHONPATH": path, "PYTHONSAFEPATH": ""})
    assert environment["PYTHONSAFEPATH"] == "1"
    folders = environment["PYTHONPATH"].split(os.pathsep) if "PYTHONPATH" in environment else []
    assert all(Path(folder).is_absolute() for folder in folders)


def test_files_keep_their_meaning_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shell = {"AWS_CA_BUNDLE": "ca.pem", "KUBECONFIG": "a:/b", "CELEBDIT_WORK_DIR": "work", "TMPDIR": "odd:name"}
    environment = child_environment("step", shell)
    assert (environment["AWS_CA_BUNDLE"], environment["CELEBDIT_WORK_DIR"]) == (str(tmp_path / "ca.pem"), str(tmp_path / "work"))
    assert (environment["KUBECONFIG"], environment["TMPDIR"]) == (f"{tmp_path}/a:/b", str(tmp_path / "odd:name"))
