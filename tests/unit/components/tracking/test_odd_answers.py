"""MLflow behind something that does not answer as MLflow does: another server, a proxy with limits, entities that were deleted."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from celebdit_testing.http_server import FixedAnswer, answering
from celebdit_testing.tls import tls_proxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.errors import BadInput, CelebditError, TrackingCallMissing, TrackingUnavailable
from components.registry.client import Registry
from components.settings import Settings
from components.tracking import server_version
from components.tracking.client import Tracking
from components.tracking.metric_points import Point
from components.tracking.server_version import check_server_version

# MLflow's client remembers where the artifacts of a run are, so reading and writing name a new one each time.
ENVIRONMENT = {"CELEBDIT_STORE": "s3://bucket/prefix", "CELEBDIT_RUN_ID": "r1"}
CALLS: dict[str, Callable[[Tracking, Path], object]] = {
    "experiment": lambda tracking, folder: tracking.experiment_id,
    "find": lambda tracking, folder: tracking.find_run({"a": "b"}),
    "search": lambda tracking, folder: tracking.training_run("0123456789abcdef"),
    "everywhere": lambda tracking, folder: tracking.search_all_runs({"a": "b"}),
    "pipeline run": lambda tracking, folder: tracking.pipeline_run(),
    "tag": lambda tracking, folder: tracking.set_tags("run", {"a": "b"}),
    "params": lambda tracking, folder: tracking.log_params("run", {"a": "b"}),
    "metrics": lambda tracking, folder: tracking.log_metrics("run", [Point("loss", 1, 0.5, 1)]),
    "history": lambda tracking, folder: tracking.logged_steps("run", "loss"),
    "status": lambda tracking, folder: tracking.set_status("run", "FINISHED"),
    "image": lambda tracking, folder: tracking.log_image("run", np.zeros((4, 4, 3), np.uint8), key="samples/grid", step=1),
    "read": lambda tracking, folder: tracking.read_artifact(uuid.uuid4().hex, "config/train.json"),
    "write": lambda tracking, folder: tracking.log_text(uuid.uuid4().hex, "text", "file.txt"),
    "versions": lambda tracking, folder: Registry(tracking, "faces").versions(),
    "aliases": lambda tracking, folder: Registry(tracking, "faces").aliases(),
    "other names": lambda tracking, folder: Registry(tracking, "faces").other_names(),
    "moves": lambda tracking, folder: Registry(tracking, "faces").moves(),
    "ensure": lambda tracking, folder: Registry(tracking, "faces").ensure("text"),
}


def answer(status: int, body: object, kind: str = "application/json") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {len(raw)}\r\nConnection: close\r\n\r\n".encode() + raw


ANSWERS = {
    "nothing": b"",
    "a page": answer(200, b"<html>Please log in</html>", "text/html"),
    "no JSON": answer(200, b"{"),
    "an empty object": answer(200, {}),
    "a list": answer(200, [1, 2]),
    "null": answer(200, None),
    "other fields": answer(200, {"experiment": {"experiment_id": 5, "colour": "red"}, "runs": {"info": 3}}),
    "a deleted entity": answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run with id=run not found"}),
    "an invalid value": answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid name\nwith two lines"}),
    "an error of no kind": answer(400, {"error_code": 7, "message": {"a": 1}}),
    "an unknown error": answer(418, {"error_code": "NO_SUCH_CODE", "message": "x"}),
    "a missing page": answer(404, b"<html>404</html>", "text/html"),
    "too large": answer(413, b"<html>Request Entity Too Large</html>", "text/html"),
    "a failure": answer(500, b"Internal Server Error", "text/plain"),
    "unavailable": answer(503, b"", "text/plain"),
    "no access": answer(401, b"", "text/plain"),
    "no right": answer(403, b"Permission denied", "text/plain"),
    "another host": answer(403, b"Invalid Host header - possible DNS rebinding attack detected", "text/plain"),
}

LACKING = {
    "a missing page": ANSWERS["a missing page"],
    "no page and no text": answer(404, b"", "text/plain"),
    "another program's JSON": answer(404, {"detail": "Not Found"}),
    "MLflow's answer": answer(404, {"error_code": "ENDPOINT_NOT_FOUND", "message": "No route"}),
    "a method that is not allowed": answer(405, b"<html>405 Method Not Allowed</html>", "text/html"),
    "another program's JSON of a method": answer(405, {"detail": "Method Not Allowed"}),
    "a page that says not implemented": answer(501, b"<html>501</html>", "text/html"),
    "MLflow says not implemented": answer(501, {"error_code": "NOT_IMPLEMENTED", "message": "x"}),
}
"""How a server that is too old, or a proxy before it, answers a call that it does not have."""
_FIRST_REQUESTS = {
    "experiment": "experiments/get-by-name",
    "find": "experiments/get-by-name",
    "search": "runs/search",
    "pipeline run": "runs/search",
    "tag": "runs/log-batch",
    "params": "runs/get",
    "metrics": "runs/log-batch",
    "history": "metrics/get-history",
    "status": "runs/update",
    "versions": "registered-models/get",
    "other names": "registered-models/search",
    "ensure": "registered-models/create",
}


@pytest.fixture(scope="module")
def odd_server() -> Iterator[FixedAnswer]:
    with answering() as server:
        yield server


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also in a folder of the test: MLflow writes to the current one if an answer names no place for artifacts."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"TIMEOUT": "1", "MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)


def failure_of(call: str, address: str, folder: Path) -> CelebditError | None:
    """What the call fails with; nothing but errors for people may leave it."""
    tracking = Tracking(Settings.from_environment({**ENVIRONMENT, "MLFLOW_TRACKING_URI": address}))
    if call not in ("experiment", "find"):
        tracking._experiment_id = "1"
    try:
        CALLS[call](tracking, folder)
    except CelebditError as error:
        return error
    return None


def is_described(error: CelebditError | None) -> bool:
    return error is None or (error.exit_code in (2, 3, 75) and "\n" not in error.message)


@pytest.mark.usefixtures("few_tries")
@pytest.mark.parametrize("kind", ANSWERS)
def test_any_answer_is_either_understood_or_described(kind: str, odd_server: FixedAnswer, tmp_path: Path) -> None:
    for call in CALLS:
        odd_server.answer_with(ANSWERS[kind])
        assert is_described(failure_of(call, odd_server.address, tmp_path)), call
        assert odd_server.requests, call


@pytest.mark.usefixtures("few_tries")
@pytest.mark.parametrize(
    ("kind", "call", "code", "reason"),
    [
        ("a deleted entity", "metrics", 2, "refuses: RESOURCE_DOES_NOT_EXIST: Run with id=run not found"),
        ("too large", "metrics", 2, "413"),
        ("a failure", "metrics", 75, "failed"),
        ("no access", "metrics", 2, "refuses access"),
        ("a page", "find", 2, "does not answer as MLflow does: it answers with a page, perhaps for a login"),
        ("a page", "metrics", 2, "does not answer as MLflow does"),
        ("unavailable", "metrics", 75, "failed: too many 503 error responses"),
        ("no access", "metrics", 2, "refuses access: it asks for a login"),
        ("no access", "write", 2, "refuses access: it asks for a login"),
        ("another host", "metrics", 2, "does not accept this host name"),
        ("a missing page", "metrics", 2, "does not offer /api/2.0/mlflow/runs/log-batch"),
        ("no JSON", "find", 75, "not in a valid JSON format"),
        ("no right", "experiment", 2, "the user lacks the right READ on the experiment 'celebdit'"),
        ("no right", "metrics", 2, "lacks the right EDIT on the runs of the experiment 'celebdit'"),
        ("no right", "params", 2, "lacks the right READ on the runs of the experiment 'celebdit'"),
        ("no right", "history", 2, "lacks the right READ on the runs"),
        ("no right", "versions", 2, "lacks the right READ on the registered model 'faces'"),
        ("no right", "ensure", 2, "lacks the right to create the registered model 'faces'"),
    ],
)
def test_what_mlflow_refuses_is_reported(
    kind: str, call: str, code: int, reason: str, odd_server: FixedAnswer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    odd_server.answer_with(ANSWERS[kind])
    error = failure_of(call, odd_server.address, tmp_path)
    assert error is not None
    assert error.exit_code == code
    assert odd_server.requests
    assert re.search(reason, error.message)


@pytest.mark.usefixtures("few_tries")
def test_a_token_that_is_not_accepted_is_not_called_a_missing_login(
    odd_server: FixedAnswer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary-token")
    odd_server.answer_with(ANSWERS["no access"])
    error = failure_of("metrics", odd_server.address, tmp_path)
    assert error is not None
    assert error.exit_code == 2
    assert "refuses access: it does not accept MLFLOW_TRACKING_TOKEN, which may have expired" in error.message
    assert "canary-token" not in f"{error.message} {error.hint}"


@pytest.mark.usefixtures("few_tries")
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 504])
def test_an_answer_that_passes_by_waiting_is_a_temporary_failure(status: int, odd_server: FixedAnswer, tmp_path: Path) -> None:
    odd_server.answer_with(answer(status, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "later"}))
    for call in ("find", "metrics"):
        error = failure_of(call, odd_server.address, tmp_path)
        assert error is not None
        assert (error.exit_code, odd_server.requests != []) == (75, True), (call, error.message)


@pytest.mark.usefixtures("few_tries")
def test_a_certificate_of_an_unknown_authority_is_no_outage(odd_server: FixedAnswer, tmp_path: Path) -> None:
    odd_server.answer_with(ANSWERS["an empty object"])
    with tls_proxy(odd_server.address, tmp_path) as (address, _):
        error = failure_of("find", address, tmp_path)
    assert error is not None
    assert (error.exit_code, "the certificate of MLflow" in error.message) == (2, True), error.message
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in str(error.hint)
    assert not odd_server.requests


@pytest.mark.usefixtures("few_tries")
@pytest.mark.parametrize("kind", LACKING)
def test_a_call_that_is_not_offered_is_named_and_is_no_outage(kind: str, odd_server: FixedAnswer, tmp_path: Path) -> None:
    for call, path in _FIRST_REQUESTS.items():
        odd_server.answer_with(LACKING[kind])
        error = failure_of(call, odd_server.address, tmp_path)
        assert odd_server.requests, call
        assert isinstance(error, TrackingCallMissing), (call, error)
        assert f"does not offer /api/2.0/mlflow/{path} (HTTP {LACKING[kind][9:12].decode()} to " in error.message
        assert (error.exit_code, "use MLflow 3.0 or newer" in str(error.hint)) == (2, True)


@pytest.mark.usefixtures("few_tries")
@pytest.mark.parametrize("call", _FIRST_REQUESTS)
def test_a_page_is_told_from_a_right_that_is_missing(call: str, odd_server: FixedAnswer, tmp_path: Path) -> None:
    odd_server.answer_with(answer(403, b"<html><body>403 Forbidden</body></html>", "text/html"))
    error = failure_of(call, odd_server.address, tmp_path)
    assert isinstance(error, TrackingCallMissing)
    assert re.search(rf"a proxy before MLflow at .* refuses [A-Z]+ /api/2.0/mlflow/{_FIRST_REQUESTS[call]} \(HTTP 403\)", error.message)
    assert "let the proxy pass GET, POST, PUT, PATCH and DELETE" in str(error.hint)
    odd_server.answer_with(ANSWERS["a page"])
    error = failure_of(call, odd_server.address, tmp_path)
    assert error is not None
    assert re.search(rf"it answers with a page, perhaps for a login \([A-Z]+ /api/2.0/mlflow/{_FIRST_REQUESTS[call]}\)", error.message)


@pytest.mark.usefixtures("few_tries")
@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b"2.22.2", "is version 2.22.2, the oldest that is supported is 3.0"),
        (b"1.30.0\n", "is version 1.30.0, the oldest"),
        (b"3.0.0", "3.0.0"),
        (b"3.17.2.dev0", "3.17.2.dev0"),
        (b"10.1.0", "10.1.0"),
        (b"<html>Please log in</html>", None),
        (b"", None),
    ],
)
def test_a_server_that_is_too_old_is_refused_by_its_version(body: bytes, outcome: str | None, odd_server: FixedAnswer) -> None:
    odd_server.answer_with(answer(200, body, "text/plain"))
    if outcome is None or body.strip() == outcome.encode():
        assert check_server_version(odd_server.address) == outcome
    else:
        with pytest.raises(BadInput, match=outcome):
            check_server_version(f"{odd_server.address}/prefix/")
        assert odd_server.requests == ["GET /prefix/version"]
    assert odd_server.requests


@pytest.mark.usefixtures("few_tries")
def test_redirections_without_end_are_no_outage(odd_server: FixedAnswer, tmp_path: Path) -> None:
    odd_server.answer_with(b"HTTP/1.1 302 x\r\nLocation: /\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    error = failure_of("find", odd_server.address, tmp_path)
    assert isinstance(error, BadInput)
    assert "does not answer as MLflow does: it redirects without end" in error.message
    assert len(odd_server.requests) > 30


@pytest.mark.parametrize(("tries", "requests"), [(None, 2), ("0", 1)])
def test_the_first_request_to_a_server_is_repeated_once_whatever_mlflows_client_would_do(
    tries: str | None, requests: int, odd_server: FixedAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TIMEOUT": None, "MAX_RETRIES": tries}.items():
        variable = f"MLFLOW_HTTP_REQUEST_{name}"
        monkeypatch.delenv(variable, raising=False) if value is None else monkeypatch.setenv(variable, value)
    monkeypatch.setattr(server_version, "_TIMEOUT_S", 1)
    for raw, delay_s, reason in ((b"", 0.0, "cannot be reached"), (answer(200, b"3.1", "text/plain"), 20.0, "Read timed out")):
        odd_server.answer_with(raw, delay_s=delay_s)
        with pytest.raises(TrackingUnavailable, match=reason):
            check_server_version(odd_server.address)
        assert len(odd_server.requests) == requests
    later = answer(429, b"later", "text/plain").replace(b"\r\n\r\n", b"\r\nRetry-After: 600\r\n\r\n", 1)
    odd_server.answer_with(later)
    assert check_server_version(odd_server.address) is None
    assert len(odd_server.requests) == requests


@pytest.mark.usefixtures("few_tries")
def test_a_server_that_stopped_and_one_that_is_slow_are_unavailable_for_a_reason(odd_server: FixedAnswer, tmp_path: Path) -> None:
    for call in ("experiment", "metrics", "write"):
        stopped = failure_of(call, "http://127.0.0.1:9", tmp_path)
        assert stopped is not None
        assert (stopped.exit_code, stopped.message) == (75, "MLflow at http://127.0.0.1:9 cannot be reached: Connection refused"), call
    plain = failure_of("metrics", odd_server.address.replace("http:", "https:"), tmp_path)
    assert plain is not None
    assert (plain.exit_code, "does not speak TLS" in plain.message) == (2, True)
    odd_server.answer_with(ANSWERS["an empty object"], delay_s=30)
    slow = failure_of("metrics", odd_server.address, tmp_path)
    assert slow is not None
    assert (slow.exit_code, slow.message) == (75, f"MLflow at {odd_server.address} cannot be reached: Read timed out")
    assert odd_server.requests


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["run", "runs", "info", "data", "experiment", "registered_model", "message", "error_code"]), inner
        )
    ),
    max_leaves=6,
)


@pytest.mark.usefixtures("few_tries")
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(status=st.sampled_from([200, 201, 302, 400, 404, 409, 413, 422, 429, 503]), body=JSON, call=st.sampled_from(sorted(CALLS)))
def test_any_json_is_either_understood_or_described(status: int, body: object, call: str, odd_server: FixedAnswer, tmp_path: Path) -> None:
    odd_server.answer_with(answer(status, body))
    assert is_described(failure_of(call, odd_server.address, tmp_path))


@pytest.mark.parametrize(
    "uri",
    [
        "./mlruns",
        "mlruns",
        "sqlite:///x.db",
        "file:///tmp/x",
        "http://[::1",
        "http://host:port",
        "http://a b",
        "databricks",
        "http://user:p/w@host",
    ],
)
def test_an_address_that_is_no_servers_is_refused_without_a_password_in_it(uri: str) -> None:
    with pytest.raises(BadInput, match=r"MLFLOW_TRACKING_URI (is not the URL of a server|contains credentials)") as raised:
        Settings.from_environment({**ENVIRONMENT, "MLFLOW_TRACKING_URI": uri})
    assert "p/w" not in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize("name", ["MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "9" * 5000])
def test_a_limit_that_is_no_number_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=f"{name} is .* not a whole number"):
        Tracking(Settings.from_environment({**ENVIRONMENT, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}))
