"""What a process logs: the form of a line, what is masked, whose records are shown, and what a person sees at a terminal."""

import json
import logging
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import BadInput, TemporaryFailure
from components.process_settings import log_level, step_log_level
from components.runtime.context import step
from components.runtime.events import EventReader, Events
from components.runtime.logs import RepeatFilter, configure_logging
from components.system.retry import RetryPolicy, retry

ROOT = Path(__file__).parents[4]
SECRET = "canary-0123456789"
LINE = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "
OURS = logging.getLogger("components.storage.store")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave logging as it was, and have a secret in the environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.delenv("CELEBDIT_LOG_LEVEL", raising=False)
    monkeypatch.setenv("MLFLOW_CONFIGURE_LOGGING", "false")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    ours = {name: logging.getLogger(name).level for name in ("celebdit", "components", "model", "pipeline")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in ours.items():
        logging.getLogger(name).setLevel(before)


def test_a_line_has_time_level_role_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.INFO, role="rank 1")
    OURS.info("put %s", "x")
    OURS.debug("not shown")
    out, err = capsys.readouterr()
    assert re.fullmatch(LINE + r"INFO rank 1 components\.storage\.store: put x\n", err)
    assert out == ""


def test_secrets_are_masked_in_messages_and_tracebacks_and_nothing_forges_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.INFO)
    try:
        raise ValueError(f"key {SECRET}")
    except ValueError:
        OURS.exception("refused: %s", f"{SECRET}\n2026-01-01 ERROR forged \x1b[31m")
    err = capsys.readouterr().err
    assert SECRET not in err
    assert "Traceback" in err
    assert re.match(LINE + r"ERROR components\.storage\.store: refused: \*\*\* 2026-01-01 ERROR forged \?\[31m\n", err)


def test_other_packages_log_from_warning_on_whatever_our_level_is(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.DEBUG, terminal=True)
    for name in ("mlflow", "botocore.endpoint", "urllib3.connectionpool", "components.x", "pipeline.x", "model.x"):
        logging.getLogger(name).info("from %s", name)
    logging.getLogger("urllib3.connectionpool").warning("Retrying")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "INFO components.x: from components.x",
        "INFO pipeline.x: from pipeline.x",
        "INFO model.x: from model.x",
        "WARNING urllib3.connectionpool: Retrying",
    ]


def test_mlflow_brings_no_handler_of_its_own() -> None:
    program = (
        "import logging; from components.runtime.logs import configure_logging; configure_logging(logging.DEBUG); import mlflow; "
        "logging.getLogger('mlflow.tracking').info('chatter'); logging.getLogger('mlflow.tracking').warning('trouble')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_CONFIGURE_LOGGING"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert [line.split(" ", 1)[1] for line in done.stderr.splitlines()] == ["WARNING mlflow.tracking: trouble"]


def test_no_handler_that_was_there_before_repeats_a_record_unmasked(capsys: pytest.CaptureFixture[str]) -> None:
    """KFP's executor configures the root logger before a step begins."""
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    configure_logging(logging.INFO)
    OURS.warning("refused with %s", SECRET)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("refused with ***")


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.INFO)
    configure_logging(logging.INFO, terminal=True)
    OURS.warning("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_a_step_says_without_an_events_file_is_logged_at_the_level_of_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.INFO)
    events = Events("train", None)
    for kind, facts in (("note", {"text": "hello"}), ("result", {"manifest": {}}), ("failed", {"message": "no"})):
        events.emit(kind, **facts)  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["INFO celebdit.train: hello", "ERROR celebdit.train: no"]


def test_at_a_terminal_a_command_speaks_plainly_and_warns_with_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.WARNING, terminal=True)
    Events("celebdit", None).note("fetching 3 files")
    OURS.info("not shown")
    OURS.warning("trouble")
    plain, warning = capsys.readouterr().err.splitlines()
    assert plain == "[celebdit] fetching 3 files"
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING components\.storage\.store: trouble", warning)


def retried(times: int, **options: object) -> list[float]:
    """Retry a call that fails so many times, and return the pauses."""
    failures, pauses = [TemporaryFailure(f"refused with {SECRET}")] * times, list[float]()

    def call() -> None:
        if failures:
            raise failures.pop()

    arguments = {"what": "put s3://b/x", "log": OURS, "policy": RetryPolicy(deadline_s=100, first_pause_s=1), **options}
    retry(call, is_temporary=lambda error: True, clock=lambda: 0.0, sleep=pauses.append, **arguments)  # type: ignore[arg-type]
    return pauses


def test_each_retry_is_a_warning_with_attempt_cause_pause_and_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.INFO)
    retried(2, uniform=lambda low, high: high)
    lines = capsys.readouterr().err.splitlines()
    form = "WARNING components.storage.store: put s3://b/x failed, attempt {}: refused with ***; next attempt in {} s, giving up in 100 s"
    assert [line.split(" ", 1)[1] for line in lines] == [form.format(1, "1.0"), form.format(2, "2.0")]


def test_pauses_are_drawn_between_half_and_all_of_what_they_may_be() -> None:
    pauses = retried(6, uniform=random.Random(0).uniform)
    for pause_s, longest_s in zip(pauses, (1, 2, 4, 8, 10, 10), strict=True):
        assert longest_s / 2 <= pause_s <= longest_s
    assert pauses != retried(6, uniform=random.Random(1).uniform)


def test_a_person_sees_one_retry_in_half_a_minute_and_all_of_them_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.WARNING, terminal=True)
    retried(5)
    assert len(capsys.readouterr().err.splitlines()) == 1
    configure_logging(logging.INFO, terminal=True)
    retried(5)
    assert len(capsys.readouterr().err.splitlines()) == 5
    now = [0.0]
    thinned = RepeatFilter(clock=lambda: now[0])
    record = logging.makeLogRecord({"msg": "again", "topic": "put"})
    passed = []
    for now[0] in (0.0, 29.0, 31.0):
        passed.append(thinned.filter(record))
    assert passed == [True, False, True]
    assert thinned.filter(logging.makeLogRecord({"msg": "another"}))


def test_a_steps_warnings_reach_whoever_watches_its_events_and_its_own_notes_come_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    configure_logging(logging.INFO, events=Events("train", path))
    retried(3, uniform=lambda low, high: high)
    OURS.warning("noted elsewhere", extra={"is_noted": True})
    logging.getLogger("urllib3").warning("not ours")
    (note,) = EventReader(path).read()
    assert note.kind == "note"
    assert note.facts["text"].startswith("put s3://b/x failed, attempt 1: refused with ***;")


def test_the_level_comes_from_the_environment() -> None:
    assert (log_level({}), log_level({"CELEBDIT_LOG_LEVEL": "debug"}), log_level({"CELEBDIT_LOG_LEVEL": "ERROR"})) == (None, 10, 40)
    with pytest.raises(BadInput, match="CELEBDIT_LOG_LEVEL is 'LOUD'"):
        log_level({"CELEBDIT_LOG_LEVEL": "loud"})


def test_a_step_with_an_unknown_level_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"CELEBDIT_LOG_LEVEL": "loud", "CELEBDIT_EVENTS": str(tmp_path / "events")}
    with pytest.raises(SystemExit) as left, step("gate", environ):
        pass
    assert left.value.code == 2
    assert "CELEBDIT_LOG_LEVEL is 'LOUD'" in capsys.readouterr().err


def celebdit(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command against servers that do not exist."""
    nowhere = {"CELEBDIT_STORE": "s3://bucket/x", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    environment = {**os.environ, **nowhere, "AWS_ACCESS_KEY_ID": "canary-id-0123", "CELEBDIT_STORAGE_DEADLINE_S": "2", **variables}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=120)


def test_a_command_that_waits_says_so_on_stderr_and_stdout_is_json_alone() -> None:
    done = celebdit("sync", "0" * 16, "--json")
    assert done.returncode == 75
    assert json.loads(done.stdout)["error"]["exit_code"] == 75
    first, *rest = done.stderr.splitlines()
    form = r"WARNING components\.storage\.store: list s3://\S+ failed, attempt 1: \w+: [\d.:]+; next attempt in 0\.\d s, giving up in 2 s"
    assert re.fullmatch(r"\d\d:\d\d:\d\d " + form, first)
    assert [line.split(":")[0] for line in rest] == ["celebdit", "  check AWS_ENDPOINT_URL, or run it again when object storage is back"]
    assert SECRET not in done.stderr


@pytest.mark.parametrize("arguments", [("-v", "sync", "0" * 16), ("sync", "0" * 16, "--verbose")])
def test_verbose_may_stand_before_or_after_the_command(arguments: tuple[str, ...]) -> None:
    done = celebdit(*arguments)
    assert len([line for line in done.stderr.splitlines() if "failed, attempt" in line]) >= 3


def test_a_command_with_an_unknown_level_is_bad_input() -> None:
    done = celebdit("config", "presets", CELEBDIT_LOG_LEVEL="loud")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("celebdit: CELEBDIT_LOG_LEVEL is 'LOUD'\n")


def test_importing_our_modules_configures_and_logs_nothing() -> None:
    modules = "pipeline.cli, components.runtime.context, pipeline.session, pipeline.kubeflow"
    program = f"import logging, {modules}; print(logging.getLogger().handlers)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(("value", "level"), [("", None), ("info", None), ("debug", "DEBUG"), ("ERROR", "ERROR")])
def test_a_submission_sets_a_log_level_of_the_steps_only_if_it_differs_from_theirs(
    value: str, level: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELEBDIT_LOG_LEVEL", value)
    assert step_log_level() == level
