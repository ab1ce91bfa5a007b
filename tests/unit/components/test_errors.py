"""What people and other processes are shown of an exception, and texts that are shown once."""

from pathlib import Path

import pytest

from components.errors import BadInput, Failure, first_line
from components.runtime.events import Event, OnceFilter
from components.settings import Settings
from pipeline.local import LocalOutcome
from pipeline.session import Session

REQUIRED = {"CELEBDIT_STORE": "s3://bucket/prefix", "MLFLOW_TRACKING_URI": "http://m"}


def test_an_error_for_people_is_shown_as_it_is_and_a_bug_with_its_kind() -> None:
    assert Failure.of(BadInput("what", hint="do this")) == Failure("BadInput", "what", "do this", 2)
    assert Failure.of(KeyError("x")) == Failure("KeyError", "KeyError: 'x'", None, 70)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError(""), "ValueError"),
        (ValueError("x" * 500), f"{'x' * 200}... (500 characters)"),
    ],
)
def test_the_first_line_of_an_error_is_short_and_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_text_is_shown_once_however_often_it_is_written() -> None:
    lines: list[str] = []
    say = OnceFilter(lines.append)
    for text in ("s3", "mlflow", "s3", "s3"):
        say(text)
    assert lines == ["s3", "mlflow"]


def test_what_a_process_does_not_know_of_itself_is_none() -> None:
    settings = Settings.from_environment(REQUIRED, in_run=False)
    assert (settings.run_id, settings.run_url, settings.preset, settings.git_commit, settings.image_digest) == (None,) * 5
    with pytest.raises(BadInput, match="belongs to no pipeline run"):
        _ = settings.pipeline_run_id
    assert Settings.from_environment({**REQUIRED, "CELEBDIT_KFP_UI": "https://kfp"}, in_run=False).run_url is None


def test_a_command_outside_any_run_does_not_take_over_the_run_of_its_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**REQUIRED, "CELEBDIT_RUN_ID": "of-the-shell", "CELEBDIT_PRESET": "of-the-shell"}.items():
        monkeypatch.setenv(name, value)
    session = Session(home=tmp_path, services=None)
    assert not {"CELEBDIT_RUN_ID", "CELEBDIT_PRESET"} & set(session.environment())
    inside = session.environment(run_id="r1", preset="demo")
    assert (inside["CELEBDIT_RUN_ID"], inside["CELEBDIT_PRESET"]) == ("r1", "demo")


def test_a_step_that_never_ended_has_no_duration() -> None:
    outcome = LocalOutcome()
    for kind, at_s in (("started", 10.0), ("started", 20.0), ("finished", 22.5)):
        outcome.add(Event("train", kind, at_s, {}))  # type: ignore[arg-type]
    outcome.add(Event("evaluate", "started", 23.0, {}))
    assert outcome.seconds == {"train": 2.5}


def test_a_duration_that_cannot_be_read_is_refused_and_an_unset_one_has_its_default() -> None:
    run = {**REQUIRED, "CELEBDIT_RUN_ID": "r1"}
    assert Settings.from_environment({**run, "CELEBDIT_STORAGE_DEADLINE_S": ""}).storage_deadline_s == 300
    assert Settings.from_environment({**run, "CELEBDIT_STORAGE_DEADLINE_S": "7.5"}).storage_deadline_s == 7.5
    for text in ("-1", "0", "soon", "nan", "86401"):
        with pytest.raises(BadInput, match="CELEBDIT_STORAGE_DEADLINE_S is"):
            Settings.from_environment({**run, "CELEBDIT_STORAGE_DEADLINE_S": text})
