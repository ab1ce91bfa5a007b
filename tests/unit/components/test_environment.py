"""The table of environment variables: complete, the only place of our names, and the source of docs/environment.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.command_settings import CommandSettings
from components.environment import SECRETS, VARIABLES, environment_page
from components.process_settings import events_path, termination_message_path
from components.runtime.redact import redactor
from components.settings import Settings

ROOT = Path(__file__).parents[3]
PACKAGES = ("model", "components", "pipeline")
NAMES = {variable.name for variable in VARIABLES}

READERS = {
    "components/settings.py": "reads the variables of ours",
    "components/process_settings.py": "reads those that a process needs before its settings are checked",
    "components/command_settings.py": "reads those of the command line",
    "components/runtime/redact.py": "masks the secrets of the whole environment",
    "components/runtime/launch.py": "passes it on to ranks",
    "components/runtime/forked_ranks.py": "gives each rank its place, as torchrun does",
    "components/runtime/rank_failures.py": "reads torchrun's RANK",
    "components/runtime/logs.py": "keeps MLflow from installing a log handler",
    "components/runtime/rank.py": "reads torchrun's RANK and WORLD_SIZE",
    "components/tracking/client.py": "joins the run of KFP's MLflow plugin",
    "components/tracking/connection.py": "configures MLflow",
    "components/tracking/request_limits.py": "limits MLflow's requests, which MLflow takes from the environment only",
    "components/kube/client.py": "reads KUBECONFIG and whether this is a pod, as kubectl does",
    "components/runtime/context.py": "reads whether KFP started this process for one step",
    "components/storage/addressing.py": "reads AWS_REGION and the addressing style, as boto3 does",
    "components/storage/client.py": "reads the addressing style, as boto3 does",
    "components/features/fidelity_extractors.py": "keeps torch from unpickling",
    "components/ingest/sources/hub_client.py": "reads the Hugging Face hub's token and address, and silences huggingface-hub",
    "components/ingest/sources/kaggle.py": "reads which of Kaggle's credentials are set",
    "components/system/service_links.py": "removes what Kubernetes sets for Services",
    "components/system/child_environment.py": "gives each child process what it needs of it",
    "components/train/worker.py": "configures cuBLAS for deterministic training",
    "pipeline/cli.py": "passes --verbose on to child processes",
    "pipeline/session.py": "hands the environment on to child processes, boto3 and MLflow",
    "pipeline/commands/services.py": "says which variables of the shell would mislead other programs",
    "components/train/reporting/trainjob_status.py": "reads where Kubeflow Trainer takes progress",
    "pipeline/embedded_environment.py": "keeps proxies away from the embedded servers",
    "pipeline/inherited_socket.py": "hands its environment on to the program that it becomes",
    "pipeline/mlflow_app.py": "passes settings to MLflow's app, which takes them from the environment only",
    "pipeline/local.py": "passes it on to containers, and keeps kfp's client out",
    "pipeline/step_processes.py": "gives a step what kfp's command sets",
    "pipeline/container_engine.py": "reads DOCKER_HOST",
    "pipeline/doctor/mlflow.py": "lends MLflow's client the credentials of the steps",
    "pipeline/doctor/servers.py": "lends boto3 the credentials of the steps",
}
"""Every module that touches `os.environ`, and why it must."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def touches_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in ("environ", "environb", "getenv") for alias in node.names)
    names = ("environ", "environb", "getenv", "putenv", "unsetenv")
    return isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name) and node.value.id == "os"


def keys_read(module: ast.Module, *, include_written: bool = True) -> Iterator[str]:
    """The names that a module reads in `os.environ` or a mapping called `environ`, and with `include_written` also those it sets."""
    constants = {
        target.id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Subscript) and is_environment(node.value) and (include_written or isinstance(node.ctx, ast.Load)):
            key: ast.expr = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_environment(node.func.value) and node.args:
            key = node.args[0]
        else:
            continue
        if isinstance(key, ast.Constant):
            yield str(key.value)
        elif isinstance(key, ast.Name):
            yield constants.get(key.id, key.id)


def is_environment(node: ast.expr) -> bool:
    return touches_environment(node) or (isinstance(node, ast.Name) and node.id == "environ")


def test_the_environment_is_read_where_the_list_says_and_nowhere_else() -> None:
    assert {path for path, module in sources() if any(map(touches_environment, ast.walk(module)))} == set(READERS)


def test_our_variables_are_read_in_settings_alone() -> None:
    ours = {name for name in NAMES if name.startswith("CELEBDIT_")}
    constants = {alias for path, module in sources() if path == "components/environment.py" for alias in assigned(module)}
    for path, module in sources():
        if path not in ("components/settings.py", "components/process_settings.py", "components/command_settings.py"):
            assert not [key for key in keys_read(module, include_written=False) if key in ours | constants], path


def assigned(module: ast.Module) -> Iterator[str]:
    return (target.id for node in module.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name))


def test_every_name_of_ours_in_code_and_manifests_is_in_the_table() -> None:
    suffixes = {".py", ".yaml", ".env", ".template", ".sh", ""}
    files = [path for folder in (*PACKAGES, "docker") for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in suffixes]
    named = {name: path for path in files for name in re.findall(r"CELEBDIT_[A-Z0-9_]*[A-Z0-9]", path.read_text())}
    assert {name: str(path) for name, path in named.items() if name not in NAMES} == {}


def test_every_variable_that_is_looked_up_is_in_the_table() -> None:
    looked_up = {key: path for path, module in sources() for key in keys_read(module) if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", key)}
    own_constants = {name for path, module in sources() if path == "components/environment.py" for name in assigned(module)}
    assert {key: path for key, path in looked_up.items() if key not in NAMES | own_constants | {"ADDRESSING"}} == {}


def test_the_table_names_each_variable_once() -> None:
    names = [variable.name for variable in VARIABLES]
    assert sorted(names) == sorted(set(names))


def test_the_page_of_the_documentation_is_the_table() -> None:
    assert (ROOT / "docs" / "environment.md").read_text() == environment_page(), "run: make docs"


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_every_secret_of_the_table_is_masked(name: str) -> None:
    assert "canary-0123" not in redactor({name: "canary-0123"})("refused: canary-0123")


def test_a_command_reads_its_settings_without_requiring_any() -> None:
    empty = CommandSettings.from_environment({})
    assert (empty.home, empty.endpoints, empty.webhook_url, empty.kfp_token) == (Path(".celebdit"), (), None, None)
    half = CommandSettings.from_environment({"CELEBDIT_STORE": " ", "MLFLOW_TRACKING_URI": "http://m", "CELEBDIT_KFP_TOKEN": "canary-0123"})
    assert half.endpoints == ("MLFLOW_TRACKING_URI",)
    assert "canary" not in repr(half)


def test_a_command_reads_the_address_of_s3_like_a_step() -> None:
    both = {"AWS_ENDPOINT_URL": "http://any", "AWS_ENDPOINT_URL_S3": "http://s3"}
    assert CommandSettings.from_environment(both).s3_endpoint == "http://s3"
    assert CommandSettings.from_environment({"AWS_ENDPOINT_URL": "http://any"}).s3_endpoint == "http://any"


def test_a_step_knows_its_pod_and_image() -> None:
    required = {"CELEBDIT_STORE": "s3://bucket/prefix", "MLFLOW_TRACKING_URI": "http://m", "CELEBDIT_RUN_ID": "r1"}
    pod = {"CELEBDIT_IMAGE": "registry/gpu@sha256:1", "CELEBDIT_NAMESPACE": "faces", "CELEBDIT_POD": "train-1"}
    settings = Settings.from_environment({**required, **pod})
    assert (settings.image, settings.namespace, settings.pod) == ("registry/gpu@sha256:1", "faces", "train-1")
    alone = Settings.from_environment(required)
    assert (alone.image, alone.namespace, alone.pod) == (None, None, None)


def test_paths_of_events_and_termination_message_are_read_before_settings_are_validated() -> None:
    assert (events_path({}), termination_message_path({})) == (None, Path("/dev/termination-log"))
    named = {"CELEBDIT_EVENTS": "/run/events.jsonl", "CELEBDIT_LAST_WORDS": "/tmp/words"}
    assert (events_path(named), termination_message_path(named)) == (Path("/run/events.jsonl"), Path("/tmp/words"))
