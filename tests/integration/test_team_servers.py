"""The servers of docker/compose.yaml and of Kubernetes, as processes here: PostgreSQL, S3 and MLflow with authentication.

What is run is what the compose file runs: its command for S3, `start-mlflow.sh`, and secrets that `new-secrets.sh` made. Only addresses
differ. The containers around them are looked at in `test_docker_manifests.py` and, where images can be built, by `make test-images`.
"""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from celebdit_testing.first_run import CommandLines
from celebdit_testing.postgres import postgres_server, programs
from celebdit_testing.recipes import DIGEST, tiny_recipe, trained_with
from celebdit_testing.registered import SAMPLING, bare_versions, description_of, report_of
from celebdit_testing.servers import wait_for_health, wait_for_port
from celebdit_testing.steps import step_context
from safetensors.numpy import save_file

from components.errors import BadInput
from components.manifests import CheckpointManifest
from components.registry.client import CHALLENGER, Registry
from components.registry.promotions.moves import Standing
from components.registry.tags import VersionTags
from components.registry.version_files import DESCRIPTION_FILE, WEIGHTS_FILE
from components.runtime.context import StepContext
from components.storage import file_sha256
from components.system.ports import free_port
from components.system.process import spawn, stop
from components.tracking.logged_models import LoggedModels

DOCKER = Path(__file__).parents[2] / "docker"
pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.skipif(programs() is None, reason="PostgreSQL's initdb and postgres, and a user for them where we are root, are not here"),
]


@dataclass(frozen=True)
class Team:
    """The servers, and what their users know."""

    mlflow: str
    s3: str
    client: dict[str, str]
    secrets: list[str]
    command_lines: CommandLines
    log: Path


def compose() -> Any:
    """The compose file with the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DOCKER / "compose.yaml").read_text())
    return yaml.safe_load(text)["services"]


def entries(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().split())


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder, services = tmp_path_factory.mktemp("team"), compose()
    watch = CommandLines()
    watch.start()
    subprocess.run(["sh", str(DOCKER / "kubernetes" / "new-secrets.sh"), str(folder)], check=True, capture_output=True)
    secrets = {
        name: entries(folder / Path(name).name) for name in ("secrets/s3.env", "secrets/mlflow-server.env", "secrets/mlflow-client.env")
    }
    ports = {"s3": free_port(), "mlflow": free_port()}
    base = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder), "TMPDIR": str(folder)}

    def environment(name: str) -> dict[str, str]:
        values = [secrets[file] for file in services[name]["env_file"]]
        return {**base, **{key: value for each in values for key, value in each.items()}, **services[name]["environment"]}

    with ExitStack() as stack:

        def serve(name: str, command: list[str], **more: str) -> "subprocess.Popen[bytes]":
            with (folder / f"{name}.log").open("wb") as log:
                process = spawn(command, environment={**environment(name), **more}, stdout=log, new_group=True)
            stack.callback(stop, process, grace_s=10.0)
            return process

        s3_script = services["s3"]["command"][-1].replace("$$", "$").replace("/data", str(folder / "data"))
        serve("s3", [*services["s3"]["command"][:-1], s3_script.replace("0.0.0.0:9000", f"127.0.0.1:{ports['s3']}")])
        wait_for_port(ports["s3"])
        database = stack.enter_context(postgres_server(secrets["secrets/mlflow-server.env"]["POSTGRES_PASSWORD"]))
        mlflow = serve(
            "mlflow",
            ["sh", str(DOCKER / "kubernetes" / "servers" / "start-mlflow.sh")],
            POSTGRES_ADDRESS=database,
            MLFLOW_S3_ENDPOINT_URL=f"http://127.0.0.1:{ports['s3']}",
            MLFLOW_LISTEN="127.0.0.1",
            MLFLOW_PORT=str(ports["mlflow"]),
            # As Kubernetes sets them for the Services beside it.
            MLFLOW_PORT_5000_TCP="tcp://10.96.0.7:5000",
            MLFLOW_HOST="tcp://10.96.0.7:5000",
            POSTGRES_PORT="tcp://10.96.0.8:5432",
        )
        url = f"http://localhost:{ports['mlflow']}"
        wait_for_health(url, mlflow, folder / "mlflow.log")
        values = [value for each in secrets.values() for value in each.values() if value != "admin"]
        client = {**secrets["secrets/mlflow-client.env"], **secrets["secrets/s3.env"]}
        yield Team(url, f"http://127.0.0.1:{ports['s3']}", client, values, watch, folder / "mlflow.log")
    watch.stop()


def ask(team: Team, path: str, who: tuple[str, str] | None, body: dict[str, Any] | None = None, *, api: str = "2.0") -> tuple[int, Any]:
    """Return the status and the answer of MLflow's REST API."""
    headers = {"Content-Type": "application/json"}
    if who is not None:
        headers["Authorization"] = "Basic " + b64encode(":".join(who).encode()).decode()
    request = urllib.request.Request(f"{team.mlflow}/api/{api}/mlflow/{path}", headers=headers)
    request.data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode(errors="replace")


@pytest.fixture(scope="module")
def steps(team: Team) -> tuple[str, str]:
    """A user for the steps who is not the administrator."""
    who = ("steps", "canary-steps-password-0123")
    assert ask(team, "users/create", admin(team), {"username": who[0], "password": who[1]})[0] == 200
    return who


def admin(team: Team) -> tuple[str, str]:
    return team.client["MLFLOW_TRACKING_USERNAME"], team.client["MLFLOW_TRACKING_PASSWORD"]


@pytest.fixture
def context(team: Team, steps: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepContext:
    """A step that is pointed at the team's servers."""
    who = dict(zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), steps, strict=True))
    for key, value in {**team.client, **who, "AWS_ENDPOINT_URL": team.s3, "MLFLOW_TRACKING_URI": team.mlflow}.items():
        monkeypatch.setenv(key, value)
    return step_context("register", tmp_path, "s3://celebdit/main", endpoint=team.s3, mlflow_uri=team.mlflow)


def test_a_model_is_registered_and_promoted_on_postgresql_by_a_user_who_is_not_the_administrator(
    team: Team, context: StepContext, tmp_path: Path
) -> None:
    """What the register step asks of MLflow; whether the model draws is another test's question."""
    card = "# faces\n\n## Recipe\n\n" + "a long recipe " * 400 + "\n\n## Numbers\n\nfew\n"
    weights = tmp_path / "model" / "artifacts" / WEIGHTS_FILE
    weights.parent.mkdir(parents=True)
    save_file({"a": np.zeros(3, dtype=np.float32)}, weights)
    (tmp_path / "model" / "README.md").write_text(card)
    recipe = trained_with(tiny_recipe())
    checkpoint = CheckpointManifest(run_key="a" * 16, uri="s3://celebdit/x", digest="c" * 64, step=7, dataset_digest=DIGEST, recipe=recipe)
    description_of(checkpoint, file_sha256(weights)).write(weights.parent / DESCRIPTION_FILE)
    tracking, registry = context.tracking, Registry(context.tracking, "faces")
    with tracking.mark_running(tracking.step_run("train", run_key=checkpoint.run_key)) as run_id:
        model_id = LoggedModels(tracking).log_evaluation(run_id, report_of(checkpoint))
        registry.ensure("faces")
        for _ in range(2):
            version = registry.add_version(
                tmp_path / "model",
                tags=VersionTags(checkpoint_digest=checkpoint.digest, ema=SAMPLING.ema, gate="pass"),
                model_id=model_id,
                run_id=run_id,
                description=card,
            )
    assert version.version == "1"
    registry.set_alias(CHALLENGER, "1")
    assert registry.promote("1", reason="the first on PostgreSQL", by="tests").champion == "1"
    assert registry.aliases() == {"challenger": "1", "champion": "1"}
    assert registry.files_of("1", tmp_path / "files").weights.read_bytes() == weights.read_bytes()
    queries = team.log.read_text()
    assert f"/artifacts/{WEIGHTS_FILE} HTTP" in queries, "its requests are among what is searched"
    assert "/mlflow-artifacts/presigned/" not in queries, "that sends clients to an address of the servers' own network"
    assert len(card) > 5000, "PostgreSQL keeps the widths of MLflow's columns, which SQLite does not know"
    assert registry.version("1").description.startswith("# faces\n\n## Numbers\n\nfew\n\n_Shortened")


def test_access_needs_a_password_and_users_change_only_their_own_objects(team: Team, context: StepContext) -> None:
    search = {"max_results": 1}
    assert ask(team, "experiments/search", None, search)[0] == 401
    assert ask(team, "experiments/search", ("admin", "wrong-password-0123"), search)[0] == 401
    assert ask(team, "experiments/search", admin(team), search)[0] == 200
    theirs = context.tracking.pipeline_run().info
    guest = ("guest", "canary-guest-password-0123")
    assert ask(team, "users/create", admin(team), {"username": guest[0], "password": guest[1]})[0] == 200
    status, body = ask(team, f"runs/get?run_id={theirs.run_id}", guest)
    assert (status, body["run"]["info"]["run_id"]) == (200, theirs.run_id)
    assert ask(team, "runs/set-tag", guest, {"run_id": theirs.run_id, "key": "x", "value": "y"})[0] == 403
    status, experiment = ask(team, "experiments/create", guest, {"name": "guests"})
    assert status == 200
    status, _ = ask(team, "runs/create", guest, {"experiment_id": experiment["experiment_id"], "start_time": 1})
    assert status == 200


@contextmanager
def tracking_of(team: Team, who: tuple[str, str], folder: Path) -> Iterator[StepContext]:
    """A step as a user of MLflow sees it."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), who, strict=True):
            patch.setenv(key, value)
        yield step_context("models", folder, "s3://celebdit/main", endpoint=team.s3, mlflow_uri=team.mlflow)


def user(team: Team, name: str, experiment_id: str, model: str, permission: str) -> tuple[str, str]:
    """A user with a right on a registered model, and the right to edit the experiment."""
    who = (name, f"canary-{name}-password-0123")
    assert ask(team, "users/create", admin(team), {"username": who[0], "password": who[1]})[0] == 200
    for kind, resource, right in (("experiment", experiment_id, "EDIT"), ("registered_model", model, permission)):
        grant = {"username": name, "resource_type": kind, "resource_id": resource, "permission": right}
        assert ask(team, "users/permissions/grant", admin(team), grant, api="3.0")[0] == 200
    return who


def what_is_there(registry: Registry) -> tuple[dict[str, str], dict[str, str]]:
    model = registry.tracking.client.get_registered_model(registry.name)
    return dict(model.tags), dict(model.aliases)


def test_a_right_on_the_experiment_promotes_nothing_and_leaves_nothing(team: Team, context: StepContext, tmp_path: Path) -> None:
    owner = bare_versions(context, "owned", 3)
    owner.promote("1", reason="first", by="owner")
    before = what_is_there(owner)
    who = user(team, "reader", context.tracking.experiment_id, "owned", "READ")
    with tracking_of(team, who, tmp_path / "reader") as theirs:
        run = theirs.tracking.client.create_run(theirs.tracking.experiment_id)
        assert run.info.run_id, "the right on the experiment is there"
        with pytest.raises(
            BadInput, match="does not allow this user to change the registered model 'owned'; nothing was changed"
        ) as refused:
            Registry(theirs.tracking, "owned").promote("2", reason="mine", by="reader")
    assert "EDIT on the registered model" in str(refused.value.hint)
    assert what_is_there(owner) == before
    assert owner.promote("3", reason="better", by="owner") == Standing("3", "1")
    assert owner.rollback(reason="worse", by="owner") == Standing("1", None)
    assert owner.aliases() == {"champion": "1"}


def test_an_alias_that_may_not_be_removed_leaves_the_log_and_the_aliases_as_they_were(
    team: Team, context: StepContext, tmp_path: Path
) -> None:
    owner = bare_versions(context, "edited", 2)
    who = user(team, "editor", context.tracking.experiment_id, "edited", "EDIT")
    with tracking_of(team, who, tmp_path / "editor") as theirs:
        registry = Registry(theirs.tracking, "edited")
        registry.promote("1", reason="first", by="editor")
        assert registry.promote("2", reason="second", by="editor") == Standing("2", "1")
        before = what_is_there(owner)
        with pytest.raises(BadInput, match="does not allow this user to remove the alias 'previous'") as refused:
            registry.rollback(reason="worse", by="editor")
    assert "MANAGE" in str(refused.value.hint)
    assert what_is_there(owner) == before
    assert owner.rollback(reason="worse", by="owner") == Standing("1", None)


def test_the_longest_entries_fit_into_postgresql(context: StepContext) -> None:
    registry = bare_versions(context, "long", 1)
    for reason in ("\U0001f600" * 1000, '"' * 1000):
        registry.promote("1", reason=reason, by="\u20ac" * 1000)
        assert registry.moves()[-1].reason == reason


def test_no_secret_of_the_servers_is_on_a_command_line(team: Team) -> None:
    command_lines = team.command_lines.command_lines
    for program in ("rclone serve s3", "mlflow server --app-name basic-auth", "postgres -D"):
        assert any(program in line for line in command_lines), f"{program} is among what is searched"
    assert not [line for line in command_lines for secret in team.secrets if secret in line]
