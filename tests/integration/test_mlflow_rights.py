"""A user who is not MLflow's administrator: everything works, or preflight says which right is missing on what.

The server gives nobody a right by default, so that each case states all that its user has.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.mlflow_steps import register_without_weights
from celebdit_testing.mlflow_users import ADMIN, MlflowUsers, mlflow_with_users
from celebdit_testing.steps import step_context

from components.errors import BadInput
from components.finalize import finalize
from components.preflight.preflight import run
from components.registry.client import Registry
from components.registry.tags import VersionTags
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.tracking.logged_models import LoggedModels
from pipeline.doctor.mlflow import check_own_mlflow

pytestmark = [pytest.mark.fault, pytest.mark.slow]


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowUsers]:
    with mlflow_with_users(tmp_path_factory.mktemp("users")) as found:
        yield found


Grant = Callable[[MlflowUsers, str, str], None]
"""Gives rights to a user (second) on what has the name of the test (third)."""
NEW_VERSION = "EDIT on the registered model '{}' and READ on the run and the logged model, without a DENY on versions"


@pytest.fixture
def name() -> str:
    """Of the experiment and of the registered model of a test."""
    return f"faces-{uuid.uuid4().hex[:8]}"


def as_user(users: MlflowUsers, user: tuple[str, str], name: str, folder: Path, endpoint: str, patch: pytest.MonkeyPatch) -> StepContext:
    """Return a step's context with the credentials of a user, in the experiment `name`."""
    patch.setenv("MLFLOW_TRACKING_USERNAME", user[0])
    patch.setenv("MLFLOW_TRACKING_PASSWORD", user[1])
    made = step_context("preflight", folder, f"s3://bucket/{name}", endpoint=endpoint, mlflow_uri=users.url, run_id=name)
    return StepContext(settings=replace(made.settings, experiment=name), events=made.events)


def on_experiment(permission: str) -> Grant:
    return lambda users, user, name: users.grant(user, "experiment", users.experiment(name), permission)


def on_model(permission: str | None, *, versions: int = 1) -> Grant:
    def grant(users: MlflowUsers, user: str, name: str) -> None:
        users.model(name, versions=versions)
        if permission is not None:
            users.grant(user, "registered_model", name, permission)

    return grant


def on_all(resource_type: str, permission: str) -> Grant:
    return lambda users, user, name: users.grant_all(user, resource_type, permission)


@pytest.mark.parametrize(
    ("grants", "missing"),
    [
        pytest.param([on_experiment("READ")], "EDIT on the experiment '{}', without a DENY on runs", id="experiment-read"),
        pytest.param([lambda users, user, name: users.experiment(name)], "READ on the experiment '{}'", id="experiment-of-another"),
        pytest.param([on_experiment("DENY")], "READ on the experiment '{}'", id="experiment-denied"),
        pytest.param([on_all("experiment", "DENY")], "to create experiments", id="all-experiments-denied"),
        pytest.param(
            [on_experiment("EDIT"), on_all("run", "DENY")], "EDIT on the experiment '{}', without a DENY on runs", id="runs-denied"
        ),
        pytest.param(
            [on_experiment("EDIT"), on_all("logged_model", "DENY")],
            "EDIT on the experiment '{}', without a DENY on logged models",
            id="logged-models-denied",
        ),
        pytest.param(
            [on_experiment("EDIT"), on_all("logged_model", "READ")],
            "EDIT on the logged models and their artifacts of the experiment '{}'",
            id="logged-models-read",
        ),
        pytest.param([on_experiment("EDIT"), on_model(None)], "READ on the registered model '{}'", id="model-of-another"),
        pytest.param([on_experiment("EDIT"), on_model("READ")], "EDIT on the registered model '{}'", id="model-read"),
        pytest.param([on_experiment("EDIT"), on_model("DENY")], "READ on the registered model '{}', or to create it", id="model-denied"),
        pytest.param([on_all("registered_model", "DENY")], "READ on the registered model '{}', or to create it", id="all-models-denied"),
        pytest.param([on_model("EDIT"), on_all("registered_model_version", "DENY")], NEW_VERSION, id="versions-denied"),
        pytest.param(
            [on_model("EDIT"), on_all("registered_model_version", "READ")],
            "EDIT on the versions of the registered model '{}'",
            id="versions-read",
        ),
    ],
)
def test_preflight_names_the_right_that_is_missing(
    users: MlflowUsers, grants: list[Grant], missing: str, name: str, tmp_path: Path, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = users.add()
    for grant in grants:
        grant(users, user[0], name)
    context = as_user(users, user, name, tmp_path, rclone_endpoint, monkeypatch)
    with pytest.raises(BadInput) as refused:
        run(ResourcesConfig(), None, context, model_name=name)
    assert refused.value.message == f"MLflow at {users.url} refuses access: user {user[0]!r} lacks the right {missing.format(name)}"
    assert refused.value.exit_code == 2
    assert ADMIN[1] not in refused.value.message
    assert user[1] not in f"{refused.value.message} {refused.value.hint}"


@pytest.mark.parametrize(
    ("grants", "kept"),
    [
        pytest.param([], 0, id="nothing-there"),
        pytest.param([on_experiment("MANAGE"), on_model("MANAGE", versions=0)], 0, id="manage"),
        pytest.param([on_experiment("EDIT"), on_model("EDIT")], 1, id="edit"),
    ],
)
def test_who_has_the_rights_passes_and_leaves_nothing_that_may_be_deleted(
    users: MlflowUsers, grants: list[Grant], kept: int, name: str, tmp_path: Path, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = users.add()
    for grant in grants:
        grant(users, user[0], name)
    context = as_user(users, user, name, tmp_path, rclone_endpoint, monkeypatch)
    before = models_of(users)
    for _ in range(2):
        run(ResourcesConfig(), None, context, model_name=name)
    tracking = context.tracking
    assert len(tracking.client.search_logged_models([tracking.experiment_id])) == kept
    assert set(models_of(users)) - set(before) <= {name}
    assert models_of(users).get(name) in (None, {}), "no tag was left"
    number = register_without_weights(context, tmp_path, name)
    assert number == str(1 + len(Registry(tracking, name).versions()[:-1]))
    finalize.run("FINISHED", "", context)
    assert tracking.pipeline_run().info.status == "FINISHED"


def test_doctor_makes_the_calls_and_leaves_nothing(users: MlflowUsers, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user, password = users.add()
    for variable, value in {
        "CELEBDIT_STORE": "s3://bucket/x",
        "CELEBDIT_EXPERIMENT": name,
        "MLFLOW_TRACKING_URI": users.url,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
    }.items():
        monkeypatch.setenv(variable, value)
    before, environment = models_of(users), dict(os.environ)
    assert check_own_mlflow(name).state == "ok"
    assert models_of(users) == before
    found = users.request("2.0/mlflow/experiments/search?max_results=1000")["experiments"]
    assert not [each["name"] for each in found if each["name"].startswith(name)]
    users.grant_all(user, "logged_model", "DENY")
    with pytest.raises(BadInput, match="without a DENY on logged models"):
        check_own_mlflow(name)
    assert dict(os.environ) == environment


def test_finalize_says_which_right_was_taken_away_meanwhile(
    users: MlflowUsers, name: str, tmp_path: Path, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = users.add()
    context = as_user(users, user, name, tmp_path, rclone_endpoint, monkeypatch)
    context.tracking.pipeline_run()
    users.grant_all(user[0], "run", "DENY")
    with pytest.raises(BadInput, match=f"user {user[0]!r} lacks the right EDIT on the experiment {name!r}, without a DENY on runs"):
        finalize.run("FAILED", "", context)


def test_who_may_not_delete_loses_a_race_to_register_without_an_error(
    users: MlflowUsers, name: str, tmp_path: Path, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = users.add()
    on_model("EDIT", versions=0)(users, user[0], name)
    context = as_user(users, user, name, tmp_path, rclone_endpoint, monkeypatch)
    tags = VersionTags(checkpoint_digest="e" * 64, ema="0.1")
    rival = [{"key": key, "value": value} for key, value in tags.to_mlflow().items()]
    registry = Registry(context.tracking, name)
    upload = registry._store.put

    def upload_and_lose(*arguments: Any, **named: Any) -> tuple[str, str]:
        users.request("2.0/mlflow/model-versions/create", {"name": name, "source": "s3://bucket/x", "tags": rival})
        return upload(*arguments, **named)

    monkeypatch.setattr(registry._store, "put", upload_and_lose)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("x")
    run_id = context.tracking.pipeline_run().info.run_id
    model = LoggedModels(context.tracking).find_or_create(run_id, name="x", digest="e" * 64, ema="0.1", uri="s3://x/y", run_key="k")
    version = registry.add_version(tmp_path / "model", tags=tags, model_id=model.model_id, run_id=run_id, description="x")
    assert version.version == "1", "the rival's"
    assert [str(each.version) for each in registry.versions()] == ["1", "2"], "its own could not be deleted"


def test_a_wrong_password_is_told_from_a_missing_right(
    users: MlflowUsers, name: str, tmp_path: Path, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = as_user(users, (users.add()[0], "canary-wrong-password"), name, tmp_path, rclone_endpoint, monkeypatch)
    with pytest.raises(BadInput, match="it does not accept the password of user 'user-") as refused:
        run(ResourcesConfig(), None, context, model_name=name)
    assert "canary" not in f"{refused.value.message} {refused.value.hint}"


def models_of(users: MlflowUsers) -> dict[str, dict[str, str]]:
    """Return the tags of all registered models."""
    found = users.request("2.0/mlflow/registered-models/search?max_results=1000").get("registered_models", [])
    return {model["name"]: {tag["key"]: tag["value"] for tag in model.get("tags", [])} for model in found}
