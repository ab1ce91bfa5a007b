"""An MLflow that lacks some calls, or a proxy before it: preflight makes every call of the later steps, and names what is missing."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from celebdit_testing.faults import Answer, Proxy, fault_proxy
from celebdit_testing.mlflow_steps import register_without_weights
from celebdit_testing.steps import step_context

from components.errors import BadInput, TrackingCallMissing
from components.manifests import DatasetManifest
from components.registry import rehearsal
from components.registry.client import Registry
from components.registry.rehearsal import rehearse
from components.runtime.context import StepContext
from components.tracking.client import Tracking
from components.tracking.run_calls import rehearse_run
from pipeline.services import Endpoints, Services

PAGE = [("Content-Type", "text/html")]
ANSWERS: list[Answer] = [
    (404, PAGE, b"<html>404 Not Found</html>"),
    (404, [("Content-Type", "application/json")], b'{"detail":"Not Found"}'),
    (405, PAGE, b"<html>405 Method Not Allowed</html>"),
    (501, PAGE, b"<html>501 Not Implemented</html>"),
    (403, PAGE, b"<html>403 Forbidden</html>"),
    (200, PAGE, b"<html>Please log in</html>"),
]
FACES, OTHER = "calls", "calls-new"
"""A registered model with a version, and the name of one that does not exist."""


@dataclass(frozen=True)
class Rehearsed:
    """A training that was registered through a proxy, the calls of preflight before it and those of the steps after that."""

    context: StepContext
    proxy: Proxy
    run_id: str
    preflight: frozenset[str]
    steps: frozenset[str]


def call_of(request: str) -> str:
    """Return method and kind of a request, without names and ids."""
    path = re.sub(r"\?.*|//+", lambda found: "" if found[0].startswith("?") else "/", request)
    path = re.sub(r"(mlflow-artifacts/artifacts/).*", r"\1FILE", path)
    return re.sub(r"\bm-[0-9a-f]{32}", "ID", path)


def calls_during(proxy: Proxy, action: Callable[[], object]) -> frozenset[str]:
    proxy.requests.clear()
    action()
    return frozenset(map(call_of, proxy.requests))


@pytest.fixture(scope="module")
def rehearsed(embedded: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsed]:
    servers: Endpoints = embedded.wait()
    folder = tmp_path_factory.mktemp("calls")
    with pytest.MonkeyPatch.context() as patch, fault_proxy(servers.mlflow_url, signed=False) as proxy:
        for name, value in servers.environment.items():
            patch.setenv(name, value)
        context = step_context(
            "preflight", folder, servers.environment["CELEBDIT_STORE"], endpoint=servers.s3_url, mlflow_uri=proxy.endpoint, run_id="calls"
        )
        tracking, registry = context.tracking, Registry(context.tracking, FACES)

        def check() -> None:
            run = tracking.pipeline_run()
            tracking.set_status(run.info.run_id, "RUNNING")
            rehearse(tracking, run, FACES)

        def run_steps() -> None:
            run_id = tracking.pipeline_run().info.run_id
            manifest = DatasetManifest.model_construct(name="x", digest="d" * 64, uri="s3://b/x", source="x", num_images=1, num_held_out=0)
            tracking.log_dataset(run_id, manifest.model_copy(update={"image_px": 8}), context="training")
            tracking.log_values(run_id, {"a": 1.0})
            tracking.log_values(run_id, {"a": 2.0})
            version = register_without_weights(context, folder, FACES)
            for reason in ("first", "again"):
                registry.promote(version, reason=reason, by="ann")
            tracking.set_status(run_id, "FINISHED")

        preflight, steps = calls_during(proxy, check), calls_during(proxy, run_steps)
        yield Rehearsed(context, proxy, tracking.pipeline_run().info.run_id, preflight, steps)


def test_preflight_makes_every_call_of_the_later_steps(rehearsed: Rehearsed) -> None:
    assert rehearsed.steps - rehearsed.preflight == set()
    assert {"POST /api/2.0/mlflow/logged-models", "PUT /api/2.0/mlflow-artifacts/artifacts/FILE"} <= rehearsed.steps
    assert {"POST /api/2.0/mlflow/runs/log-inputs", "GET /api/2.0/mlflow/metrics/get-history"} <= rehearsed.steps


EARLY = [
    "POST /api/2.0/mlflow/runs/set-tag",
    "POST /api/2.0/mlflow/runs/log-inputs",
    "POST /api/2.0/mlflow/runs/log-batch",
    "GET /api/2.0/mlflow/metrics/get-history",
    "PUT /api/2.0/mlflow-artifacts/artifacts/FILE",
    "GET /api/2.0/mlflow-artifacts/artifacts",
    "GET /api/2.0/mlflow-artifacts/artifacts/FILE",
    "POST /api/2.0/mlflow/logged-models/search",
    "POST /api/2.0/mlflow/logged-models",
]
LATE = [
    "GET /api/2.0/mlflow/registered-models/get",
    "GET /api/2.0/mlflow/model-versions/search",
    "POST /api/2.0/mlflow/registered-models/set-tag",
    "DELETE /api/2.0/mlflow/registered-models/delete-tag",
    "POST /api/2.0/mlflow/registered-models/create",
    "POST /api/2.0/mlflow/model-versions/create",
    "POST /api/2.0/mlflow/model-versions/set-tag",
    "GET /api/2.0/mlflow/model-versions/get-download-uri",
    "POST /api/2.0/mlflow/registered-models/alias",
    "DELETE /api/2.0/mlflow/registered-models/alias",
]


@pytest.fixture
def without(rehearsed: Rehearsed) -> Iterator[Callable[[str, Answer], list[str]]]:
    """Let the proxy answer one call itself, and return the list of these requests."""

    def refuse(call: str, answer: Answer) -> list[str]:
        refused: list[str] = []

        def rule(method: str, path: str, headers: object) -> Answer | None:
            if call_of(f"{method} {path}") != call:
                return None
            refused.append(path)
            return answer

        rehearsed.proxy.rule = rule
        return refused

    yield refuse
    rehearsed.proxy.rule = Proxy().rule


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("call", EARLY)
def test_a_call_that_is_missing_is_named_before_anything_is_trained(
    call: str, rehearsed: Rehearsed, without: Callable[[str, Answer], list[str]]
) -> None:
    for answer in ANSWERS[EARLY.index(call) % 2 :: 2]:
        refused = without(call, answer)
        with pytest.raises(TrackingCallMissing) as missing:
            rehearse(rehearsed.context.tracking, rehearsed.context.tracking.pipeline_run(), FACES)
        assert refused
        assert call.split()[1].removesuffix("FILE") in missing.value.message, answer
        assert missing.value.exit_code == 2


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize(("name", "call"), [*((FACES, call) for call in LATE), *((OTHER, call) for call in LATE if "DELETE" not in call)])
def test_a_call_of_the_registry_that_is_missing_is_named_whether_or_not_the_model_exists(
    call: str, name: str, rehearsed: Rehearsed, without: Callable[[str, Answer], list[str]]
) -> None:
    tracking = rehearsed.context.tracking
    registry = Registry(tracking, name)
    source = str(tracking.client.get_run(rehearsed.run_id).info.artifact_uri)
    refused = without(call, ANSWERS[(LATE.index(call) + (name == FACES)) % len(ANSWERS)])
    with pytest.raises(TrackingCallMissing) as missing:
        rehearsal._rehearse_registry(registry, rehearsed.run_id, "", source)
    assert refused
    assert call.split()[1] in missing.value.message
    rehearsed.proxy.rule = Proxy().rule
    assert not [other for other in registry.other_names() if other.startswith(f"{name}-preflight")], "the model of the rehearsal is deleted"


def test_a_rehearsal_passes_where_another_sets_its_tag_on_the_model_at_the_same_moment(rehearsed: Rehearsed) -> None:
    """MLflow's database refuses the second of two that insert it; once it is there, or gone again, the same call succeeds."""
    call, refused = "POST /api/2.0/mlflow/registered-models/set-tag", list[str]()
    conflict = json.dumps({"error_code": "BAD_REQUEST", "message": "UNIQUE constraint failed: registered_model_tags.name"}).encode()

    def refuse_first(method: str, path: str, headers: object) -> Answer | None:
        if refused or call_of(f"{method} {path}") != call:
            return None
        refused.append(path)
        return 400, [("Content-Type", "application/json")], conflict

    tracking = rehearsed.context.tracking
    rehearsed.proxy.rule = refuse_first
    try:
        rehearse(tracking, tracking.pipeline_run(), FACES)
    finally:
        rehearsed.proxy.rule = Proxy().rule
    assert len(refused) == 1
    assert "celebdit.preflight" not in tracking.client.get_registered_model(FACES).tags


@pytest.mark.parametrize("is_shared", [True, False], ids=["this machine's server", "a server on another machine"])
def test_artifacts_in_a_folder_are_refused_unless_the_server_sees_it(is_shared: bool, rehearsed: Rehearsed, tmp_path: Path) -> None:
    """As with `--no-serve-artifacts` and a folder, the client writes to its own disk, whatever machine that is of."""
    tracking, name = rehearsed.context.tracking, f"folder-{tmp_path.name}"
    experiment = tracking.client.create_experiment(name, artifact_location=str(tmp_path / "root"))
    run = tracking.client.create_run(experiment)
    elsewhere = Tracking(replace(tracking.settings, experiment=name))
    listed: list[str] = []

    def list_its_own_disk(method: str, path: str, status: int) -> Answer | None:
        if "/mlflow/artifacts/list" not in path:
            return None
        listed.append(path)
        return None if is_shared else (200, [("Content-Type", "application/json")], b'{"files": []}')

    rehearsed.proxy.replacement = list_its_own_disk
    try:
        if is_shared:
            rehearse_run(elsewhere, run)
        else:
            with pytest.raises(BadInput, match=rf"does not see the artifacts of experiment '{name}': their place is the folder") as refused:
                rehearse_run(elsewhere, run)
            assert "--artifacts-destination" in str(refused.value.hint)
    finally:
        rehearsed.proxy.replacement = Proxy().replacement
    assert listed
    assert (tmp_path / "root" / run.info.run_id / "artifacts" / "preflight.txt").exists()
