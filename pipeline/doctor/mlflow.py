"""Check MLflow: its version, and every kind of call that the steps make, with their credentials.

Promises: what a check creates in MLflow, it deletes, as far as its user may; requests are limited, so that a slow server ends a check.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import urllib3

from components import deployment as names
from components.command_settings import CommandSettings
from components.environment import EXPERIMENT, MLFLOW, MLFLOW_USER, REGISTRY, STORE, TRACKING_TOKEN, WORKSPACE
from components.errors import BadInput, CelebditError
from components.settings import Settings
from components.tracking.request_limits import limit_requests
from components.tracking.server_version import check_server_version
from components.tracking.tags import TAG_KIND
from pipeline.doctor.checks import Check
from pipeline.doctor.servers import is_inside

if TYPE_CHECKING:
    from components.tracking.client import Run, Tracking

_TIMEOUT_S = 10
_KIND = "doctor"


def check_mlflow(settings: Mapping[str, str], model_name: str) -> Check:
    """Check that MLflow is new enough, refuses anonymous requests, and accepts all that the steps do with their credentials."""
    uri = (CommandSettings.from_environment().mlflow_uri or settings.get(MLFLOW) or "").rstrip("/")
    if not uri:
        return Check("mlflow", "unknown", "its URL is missing", "see the checks above")
    if is_inside(uri):
        fix = f"kubectl -n celebdit port-forward svc/mlflow 5000 and set {MLFLOW}=http://localhost:5000; the preflight step checks it too"
        return Check("mlflow", "unknown", f"{uri} cannot be reached from here", fix)
    of_steps = {key: settings.get(key, "") for key in (*names.SECRET_KEYS[names.MLFLOW_SECRET], WORKSPACE)}
    problem = _access_problem(uri, anonymous=_status(uri, {}), authenticated=_status(uri, _login(settings)))
    if problem is not None:
        return problem
    with _environment(of_steps):
        return Check("mlflow", "ok", f"{_check_calls(uri, settings, model_name)}; it requires authentication")


def _access_problem(uri: str, *, anonymous: int, authenticated: int) -> Check | None:
    """Return what is wrong with the access to MLflow, from the statuses of an anonymous and an authenticated request."""
    if authenticated == 401:
        problem = f"{uri} does not accept the credentials of {names.MLFLOW_SECRET}"
        return Check("mlflow", "fail", problem, "write the credentials of a user of MLflow into it")
    if authenticated == 403:
        fix = "if the response is Invalid Host header, add this host to MLFLOW_HOSTS (servers/mlflow.yaml)"
        return Check("mlflow", "fail", f"{uri} answers 403", fix)
    if authenticated != 200:
        return Check("mlflow", "fail", f"{uri} answers HTTP {authenticated}", "see its log: kubectl -n celebdit logs deploy/mlflow")
    if anonymous == 200:
        fix = "start it with authentication, as docker/kubernetes/servers does"
        return Check("mlflow", "fail", f"{uri} accepts anonymous requests", fix)
    return None


def check_own_mlflow(model_name: str) -> Check:
    """Check the MLflow server of this machine's environment, with the credentials there."""
    settings = CommandSettings.from_environment()
    assert settings.mlflow_uri is not None, "called if it is configured"
    with _environment({}):
        return Check("mlflow", "ok", _check_calls(settings.mlflow_uri.rstrip("/"), os.environ, model_name))


def _check_calls(uri: str, settings: Mapping[str, str], model_name: str) -> str:
    """Make the calls of the steps and return what is to be said.

    Raises:
        CelebditError: what the steps would fail with.
    """
    from components.registry.rehearsal import rehearse  # noqa: PLC0415 - imports MLflow, which takes seconds
    from components.tracking.client import Tracking  # noqa: PLC0415

    others = {name: settings.get(name, "") for name in (EXPERIMENT, REGISTRY)}
    needed = {MLFLOW: uri, STORE: settings.get(STORE) or "s3://not-configured", **others}
    tracking = Tracking(Settings.from_environment(needed, in_run=False))
    version = check_server_version(uri)
    with _temporary_run(tracking) as (rehearsing, run):
        rehearse(rehearsing, run, model_name, keep_model=False)
    server = f"{uri}, version {version}," if version else f"{uri}, of an unknown version,"
    return f"{server} accepts what the steps do in experiment {tracking.settings.experiment!r} and with model {model_name!r}"


@contextmanager
def _temporary_run(tracking: "Tracking") -> Iterator[tuple["Tracking", "Run"]]:
    """Yield a client and an MLflow run for the block: in the experiment of the steps or, before there is one, in one of its own.

    Who may not delete the run leaves one for all checks.
    """
    with tracking.translate_errors():
        has_experiment = tracking.client.get_experiment_by_name(tracking.settings.experiment) is not None
        if not has_experiment:
            own = f"{tracking.settings.experiment}-{_KIND}-{uuid.uuid4().hex[:8]}"
            tracking = type(tracking)(replace(tracking.settings, experiment=own))
        kept = tracking.search_runs({TAG_KIND: _KIND})
        run = kept[0] if kept else tracking.client.create_run(tracking.experiment_id, tags={TAG_KIND: _KIND}, run_name="celebdit doctor")
    try:
        yield tracking, run
    finally:
        with suppress(CelebditError), tracking.translate_errors():
            tracking.set_status(run.info.run_id, "FINISHED")
            if has_experiment:
                tracking.client.delete_run(run.info.run_id)
            else:
                tracking.client.delete_experiment(tracking.experiment_id)


def _login(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with which MLflow's client logs in: a user name and password win over a token."""
    user, password = (settings.get(key, "") for key in MLFLOW_USER)
    token = settings.get(TRACKING_TOKEN)
    if token and not (user and password):
        return {"authorization": f"Bearer {token}"}
    return dict(urllib3.make_headers(basic_auth=f"{user}:{password}"))


def _status(uri: str, headers: Mapping[str, str]) -> int:
    url = f"{uri}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        return int(urllib3.request("GET", url, headers=headers, timeout=_TIMEOUT_S, retries=False).status)
    except urllib3.exceptions.HTTPError as error:
        raise BadInput(f"{uri} cannot be reached: {type(error).__name__}", hint="start it, or port-forward it") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables in the environment for the block, where MLflow's client reads them, and limits of its requests.

    One without a value is removed: the credentials of this shell are not those of the steps.
    """
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    try:
        limit_requests(timeout_s=_TIMEOUT_S, max_retries=0)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
