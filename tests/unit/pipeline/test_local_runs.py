"""The runs of this machine, listed without a server."""

import fcntl
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from celebdit_testing.submissions import run_cli

from components.environment import KFP_ENDPOINT
from components.runtime.events import Event, EventReader
from pipeline.local_runs import local_runs, read_run
from pipeline.open_runs import record_end

RESULTS: dict[str, dict[str, Any]] = {
    "preflight": {"run_url": "http://127.0.0.1:5000/#/experiments/1/runs/r", "run_id": "r", "tracking_uri": "http://127.0.0.1:5000"},
    "evaluate": {"headline": "eval/fid_50k", "metrics": {"eval/fid_50k": 4.25}},
    "gate": {"decision": "pass"},
    "register": {"name": "celebdit", "version": "7"},
}


def write_run(home: Path, run_id: str, at_s: float, results: dict[str, dict[str, Any]], **failure: Any) -> Path:
    folder = home / "runs" / run_id
    folder.mkdir(parents=True)
    events: list[dict[str, Any]] = []
    for step, manifest in results.items():
        events.append({"step": step, "kind": "started", "at_s": at_s, "facts": {}})
        events.append({"step": step, "kind": "result", "at_s": at_s, "facts": {"manifest": manifest}})
        events.append({"step": step, "kind": "finished", "at_s": at_s + 3, "facts": {}})
    if failure:
        events.append({"step": "train", "kind": "failed", "at_s": at_s, "facts": failure})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_one_cause_has_one_word_whoever_closed_the_run(tmp_path: Path) -> None:
    """A step that was stopped with the run reports that it failed, and the mark goes when the run is closed, by whom ever."""
    stopped = {"exit_code": 75, "message": "stopped", "hint": None}
    causes: tuple[Literal["interrupted", "killed", "failed"], ...] = ("interrupted", "killed", "failed")
    for cause in causes:
        for number, is_closed in enumerate((True, False)):
            folder = write_run(tmp_path, f"smoke-20261101-10000{number}-{cause.encode().hex()}", 1e9, {}, **stopped)
            record_end(folder, cause, "the runner was killed" if cause == "failed" else None)
            record_end(folder, "killed")
            if not is_closed:
                (folder / "open.json").write_text("{}")
            run = read_run(folder)
            assert run is not None
            assert (run.state, run.why) == (cause, "the runner was killed" if cause == "failed" else None)


def test_a_trial_of_a_sweep_ends_with_its_evaluation(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "sweep-0-40-20261101-100000-aaaa", 1e9, {"evaluate": RESULTS["evaluate"], "finalize": {}}))
    stopped = read_run(write_run(tmp_path, "sweep-0-40-20261101-100001-aaaa", 1e9, {"evaluate": RESULTS["evaluate"]}))
    assert run is not None
    assert stopped is not None
    assert (run.state, stopped.state) == ("evaluated", "interrupted")


def test_without_an_endpoint_the_runs_of_this_machine_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KFP_ENDPOINT, raising=False)
    home = tmp_path / "home"
    arguments = ("runs", "--home", str(home))
    assert "there are no runs in" in run_cli(capsys, *arguments)[2]
    write_run(home, "smoke-20261101-100000-aaaa", 1e9, RESULTS)
    gate_failed = {**RESULTS, "gate": {"decision": "fail"}}
    gate_failed.pop("register")
    write_run(home, "my-own-20261101-100001-bbbb", 1e9 + 1, gate_failed)
    write_run(home, "smoke-20261101-100002-cccc", 1e9 + 2, {}, exit_code=3, message="the dataset is damaged", hint=None)
    (write_run(home, "smoke-20261101-100003-dddd", 1e9 + 3, {"preflight": RESULTS["preflight"]}) / "open.json").write_text("{}")
    running = write_run(home, "smoke-20261101-100004-eeee", 1e9 + 4, {"preflight": RESULTS["preflight"]}) / "open.json"
    running.write_text("{}")
    write_run(home, "smoke-20261101-100005-ffff", 1e9 + 5, {"preflight": RESULTS["preflight"]})
    (home / "runs" / "smoke-20261101-100006-0000").mkdir()  # nothing was written
    with (home / "runs" / "smoke-20261101-100005-ffff" / "events.jsonl").open("a") as events:
        events.write('{"step": "train", "ki')  # a line that is being written
    with running.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, out, err = run_cli(capsys, *arguments, "--json")
    assert code == 0, err
    listed = json.loads(out)["runs"]
    states = ["interrupted", "running", "killed", "failed", "gate failed", "registered"]
    assert [run["state"] for run in listed] == states
    assert [run["preset"] for run in listed] == ["smoke", "smoke", "smoke", "smoke", "my-own", "smoke"]
    assert (listed[-1]["score"], listed[-1]["version"]) == ("eval/fid_50k = 4.250", "celebdit version 7")
    assert listed[-1]["mlflow"] == RESULTS["preflight"]["run_url"]
    assert "train: the dataset is damaged" in str(listed[3]["why"])
    assert "eval/fid_50k = 4.250  celebdit version 7" in err
    assert len(json.loads(run_cli(capsys, *arguments, "--limit", "2", "--json")[1])["runs"]) == 2
    code, _, err = run_cli(capsys, *arguments, "smoke-20261101-100000-aaaa")
    assert code == 0
    assert "register     3 s" in err
    assert run_cli(capsys, *arguments, "smoke-20261101-999999-aaaa")[0] == 2
    assert run_cli(capsys, *arguments, "../runs")[0] == 2


def test_the_columns_of_the_list_are_aligned_for_names_of_any_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KFP_ENDPOINT, raising=False)
    write_run(tmp_path, "smoke-20261101-100000-aaaa", 1e9, RESULTS)
    write_run(tmp_path, "a-sweep-with-a-long-name-0-1-120-20261101-100001-bbbb", 1e9 + 1, RESULTS)
    other = {**RESULTS, "evaluate": {"headline": "eval/fd_randconv_16", "metrics": {"eval/fd_randconv_16": 14.25}}}
    write_run(tmp_path, "smoke-20261101-100002-cccc", 1e9 + 2, other)
    write_run(tmp_path, "smoke-20261101-100003-dddd", 1e9 + 3, {}, exit_code=3, message="the dataset is damaged", hint=None)
    lines = run_cli(capsys, "runs", "--home", str(tmp_path))[2].splitlines()[:4]
    assert len({line.index(" 2001-") for line in lines}) == 1
    assert len({line.index("eval/") for line in lines if "eval/" in line}) == 1
    assert len({line.index("celebdit version 7") for line in lines if "version" in line}) == 1
    assert lines[0].endswith("train: the dataset is damaged")
    assert all(line == line.rstrip() for line in lines)


def test_of_runs_beyond_the_limit_only_the_first_event_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_run(tmp_path, f"smoke-2026110{5 - number}-100000-aaaa", 1e9 + number, RESULTS)
    (tmp_path / "runs" / "smoke-20261109-100000-bbbb").mkdir()  # it is to come
    write_run(tmp_path, "scores-of-no-pipeline", 1e9 + 9, RESULTS)
    read, read_events = [], EventReader.read

    def record(reader: EventReader) -> list[Event]:
        read.append(reader)
        return read_events(reader)

    monkeypatch.setattr(EventReader, "read", record)
    listed = [run.run_id for run in local_runs(tmp_path, limit=2)]
    assert listed == ["smoke-20261101-100000-aaaa", "smoke-20261102-100000-aaaa"]
    assert len(read) == 3, "the two, and the newest folder, which is none of a run"
