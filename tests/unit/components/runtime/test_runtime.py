"""Errors, settings, redaction, events and retry: what every step leans on."""

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from components.errors import BadInput, CelebditError, DataRefused, GateFailed, StorageUnavailable, TemporaryFailure, error_for_exit_code
from components.runtime.events import EventReader, Events
from components.runtime.redact import redactor
from components.settings import Settings, missing_credentials
from components.system.retry import RetryPolicy, retry

LOG = logging.getLogger("components.test")
ENVIRONMENT = {"CELEBDIT_STORE": "s3://bucket/pre/fix", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "CELEBDIT_RUN_ID": "r1"}


@pytest.mark.parametrize(
    ("kind", "code"),
    [(GateFailed, 1), (BadInput, 2), (DataRefused, 3), (TemporaryFailure, 75), (StorageUnavailable, 75), (CelebditError, 70)],
)
def test_each_kind_of_error_has_its_exit_code_and_survives_another_process(kind: type[CelebditError], code: int) -> None:
    error = kind("what", hint="do this")
    assert error.exit_code == code
    rebuilt = error_for_exit_code(code, error.message, hint=error.hint)
    assert (rebuilt.exit_code, rebuilt.message, rebuilt.hint) == (code, "what", "do this")


def test_settings_are_read_from_the_environment() -> None:
    settings = Settings.from_environment({**ENVIRONMENT, "AWS_ENDPOINT_URL": "http://s3:9000", "CELEBDIT_WORK_DIR": "/scratch"})
    assert settings.store_uri == "s3://bucket/pre/fix"
    assert settings.s3_endpoint == "http://s3:9000"
    assert settings.work_dir == Path("/scratch")
    assert settings.experiment == "celebdit"


@pytest.mark.parametrize("name", sorted(ENVIRONMENT))
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_setting_is_named(name: str, value: str | None) -> None:
    environment = {key: text for key, text in ENVIRONMENT.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(BadInput, match=name):
        Settings.from_environment(environment)


@pytest.mark.parametrize(
    "store", ["s3://", "bucket/x", "s3://B/x", "s3://bucket/../x", "file:///x", "s3://key:secret@bucket/x", "s3://bucket/a b"]
)
def test_a_store_that_is_no_s3_location_is_refused_without_showing_it(store: str) -> None:
    with pytest.raises(BadInput) as raised:
        Settings.from_environment({**ENVIRONMENT, "CELEBDIT_STORE": store})
    assert "secret" not in raised.value.message


def test_credentials_inside_the_mlflow_address_are_refused_without_showing_them() -> None:
    with pytest.raises(BadInput) as raised:
        Settings.from_environment({**ENVIRONMENT, "MLFLOW_TRACKING_URI": "http://me:hunter22@host"})
    assert "hunter22" not in raised.value.message + str(raised.value.hint)


def test_missing_credentials_are_named_unless_another_provider_is_configured() -> None:
    assert missing_credentials({}) == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert missing_credentials({"AWS_ACCESS_KEY_ID": "a"}) == ["AWS_SECRET_ACCESS_KEY"]
    assert missing_credentials({"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}) == []


@pytest.mark.parametrize(
    "text",
    [
        "failed with key s3cr3t-value-1 in it",
        "http://user:s3cr3t-value-1@host/path",
        "http://user:other-password@host/path",
        "Authorization: Bearer abcdef0123456789",
        "Credential=AKIDEXAMPLE/20261123/us-east-1/s3/aws4_request, Signature=deadbeef0123",
    ],
)
def test_secrets_are_masked_wherever_they_stand(text: str) -> None:
    masked = redactor({"AWS_SECRET_ACCESS_KEY": "s3cr3t-value-1", "PATH": "/usr/bin"})(text)
    for secret in ("s3cr3t-value-1", "other-password", "abcdef0123456789", "AKIDEXAMPLE", "deadbeef0123"):
        assert secret not in masked
    assert "***" in masked


@pytest.mark.parametrize(
    "name", ["CELEBDIT_KFP_COOKIES", "CELEBDIT_KFP_TOKEN", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "RCLONE_AUTH_KEY"]
)
def test_every_secret_that_we_read_from_the_environment_is_masked(name: str) -> None:
    assert redactor({name: "session=canary-0123"})("refused Cookie: session=canary-0123; path=/") == "refused Cookie: ***; path=/"


def test_each_cookie_is_masked_by_itself() -> None:
    redact = redactor({"CELEBDIT_KFP_COOKIES": "session=canary-0123; token=canary-4567"})
    assert redact("session canary-0123 has expired, token=canary-4567 not") == "session *** has expired, token=*** not"


def test_what_only_points_at_a_secret_is_not_masked() -> None:
    environ = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "CELEBDIT_KFP_CA_FILE": "/etc/ca.pem", "KAGGLE_USERNAME": "somebody"}
    text = "/var/run/token /etc/ca.pem somebody"
    assert redactor(environ)(text) == text


def test_ordinary_text_is_not_masked() -> None:
    redact = redactor({"AWS_SECRET_ACCESS_KEY": "s3cr3t-value-1", "PATH": "/usr/bin", "SHORT_TOKEN": "abc"})
    assert redact("s3://bucket/main abc /usr/bin") == "s3://bucket/main abc /usr/bin"


def test_events_written_by_many_threads_are_read_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def talk(number: int) -> None:
        events = Events(f"step{number}", path)
        for index in range(50):
            events.note(f"{number}-{index} " + "x" * 500)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    reader, seen = EventReader(path), []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen += reader.read()
    seen += reader.read()
    assert len(seen) == 200
    assert reader.read() == []
    for number in range(4):
        mine = [event.facts["text"].split()[0] for event in seen if event.step == f"step{number}"]
        assert mine == [f"{number}-{index}" for index in range(50)]


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"step": "train", "kind": "note", "at_s": 1.0, "facts": {"text": "hello"}})
    path.write_text(line[:20])
    reader = EventReader(path)
    assert reader.read() == []
    path.write_text(line + "\n")
    assert [event.facts["text"] for event in reader.read()] == ["hello"]


def test_progress_is_thinned_out_but_its_end_is_always_told(tmp_path: Path) -> None:
    now = [100.0]
    events = Events("train", tmp_path / "e", clock=lambda: now[0])
    for done in range(1, 101):
        now[0] += 0.01
        events.progress(done, 100)
    told = [event.facts["done"] for event in EventReader(tmp_path / "e").read()]
    assert told[-1] == 100
    assert 4 <= len(told) <= 8


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_retry_insists_with_growing_pauses_until_the_deadline() -> None:
    clock, calls = Clock(), []

    def call() -> None:
        calls.append(clock.now)
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        retry(
            call,
            what="call",
            log=LOG,
            policy=RetryPolicy(deadline_s=20, first_pause_s=1, longest_pause_s=4),
            is_temporary=lambda error: True,
            clock=lambda: clock.now,
            sleep=clock.sleep,
            uniform=lambda low, high: high,
        )
    assert clock.pauses[:4] == [1, 2, 4, 4]
    assert 15 <= clock.now <= 20


def test_retry_returns_the_first_success_and_raises_what_is_not_temporary_at_once() -> None:
    clock, results = Clock(), [ConnectionError("a"), ConnectionError("b"), "fine"]

    def call() -> str:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    arguments = {"what": "call", "log": LOG, "policy": RetryPolicy(deadline_s=20), "clock": lambda: clock.now, "sleep": clock.sleep}
    assert retry(call, is_temporary=lambda error: True, **arguments) == "fine"  # type: ignore[arg-type]
    results[:] = [ValueError("no")]
    with pytest.raises(ValueError, match="no"):
        retry(call, is_temporary=lambda error: isinstance(error, ConnectionError), **arguments)  # type: ignore[arg-type]
    assert len(clock.pauses) == 2


@pytest.mark.parametrize(
    ("modules", "unneeded"),
    [
        ("components.train.train", {"torch", "mlflow", "kubernetes"}),
        ("components.train.worker, components.evaluate.measure", {"mlflow", "torch_fidelity", "torchvision"}),
        ("components.evaluate.evaluate, components.register.register", {"torch", "torch_fidelity"}),
        ("components.ingest.decoding.decoder", {"numpy", "psutil", "boto3"}),
    ],
)
def test_a_step_imports_no_library_before_it_needs_it(modules: str, unneeded: set[str]) -> None:
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {unneeded!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    assert done.stdout.split() == []
