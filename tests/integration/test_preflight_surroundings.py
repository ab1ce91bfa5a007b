"""What preflight and the commands say of surroundings that no waiting mends: a wrong clock, a file system that cannot be written."""

import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from celebdit_testing.faults import fault_proxy
from celebdit_testing.http_server import Handler, serving
from celebdit_testing.small_disks import cannot_mount, on_small_disk
from celebdit_testing.steps import step_context

from components.errors import BadInput
from components.preflight.preflight import run
from components.resources import ResourcesConfig
from components.storage import StoreUri, connect
from components.storage.clock import check_clock

_DAY_S = 86400.0


@pytest.mark.parametrize(("ahead_s", "delta"), [(-13 * 365 * _DAY_S, "4745 days ahead"), (_DAY_S, "1440 minutes behind")])
def test_a_wrong_clock_is_reported_within_seconds(tmp_path: Path, rclone_endpoint: str, ahead_s: float, delta: str) -> None:
    with fault_proxy(rclone_endpoint, clock_ahead_s=ahead_s) as proxy:
        context = step_context("preflight", tmp_path, "s3://bucket/x", endpoint=proxy.endpoint)
        assert context.settings.storage_deadline_s == 300
        began_s = time.monotonic()
        with pytest.raises(BadInput, match=rf"this machine's clock says .* UTC, that of object storage .* UTC: it is {delta}") as refused:
            run(ResourcesConfig(), None, context)
        assert time.monotonic() - began_s < 10
        assert proxy.requests, "object storage was asked"
    assert refused.value.hint is not None
    assert "set the clock" in refused.value.hint


@pytest.mark.parametrize("dates", [["{0} GMT", "{0} GMT"], ["{0} -0000"], ["{0}"]])
@pytest.mark.parametrize(("ahead_s", "said"), [(0.0, "within "), (_DAY_S, "behind")])
def test_a_date_without_a_zone_or_beside_that_of_a_proxy_is_in_utc(
    monkeypatch: pytest.MonkeyPatch, dates: list[str], ahead_s: float, said: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    asked = []

    class DatedHandler(Handler):
        def do_HEAD(self) -> None:  # noqa: N802 - the base class names it so
            asked.append(self.path)
            self.send_response_only(200)
            for date in dates:
                self.send_header("Date", date.format(formatdate(time.time() + ahead_s).removesuffix(" -0000")))
            self.end_headers()

    with serving(DatedHandler) as endpoint:
        try:
            answer = check_clock(connect(endpoint), StoreUri.parse("s3://bucket/x"))
        except BadInput as refused:
            answer = str(refused)
    assert said in answer
    assert asked == ["/bucket"]


def test_a_clock_that_is_right_is_reported_too(rclone_endpoint: str) -> None:
    assert check_clock(connect(rclone_endpoint), StoreUri.parse("s3://bucket/x")).startswith("within ")
    assert check_clock(connect("http://127.0.0.1:9"), StoreUri.parse("s3://bucket/x")) == "not compared"


@pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount() or "-")
@pytest.mark.parametrize("made", ["", "mkdir -p home/s3/celebdit home/s3/mlflow home/logs; touch home/.gitignore home/services.users"])
def test_a_home_on_a_read_only_file_system_is_bad_input(tmp_path: Path, made: str) -> None:
    disk = tmp_path / "disk"
    commands = [["run", "smoke"], ["ingest", "--source", "synthetic://?count=4"], ["services", "up"], ["models", "list"]]
    lines = [[sys.executable, "-m", "pipeline.cli", *command, "--home", str(disk / "home")] for command in commands]
    read_only = f"{made}\nmount -o remount,ro {disk}"
    outcomes = on_small_disk(disk, [(read_only if line is lines[0] else "", line) for line in lines], size_bytes=2**20, environment={})
    for command, outcome in zip(commands, outcomes, strict=True):
        assert outcome.code == BadInput.exit_code, (command, outcome.output)
        assert "Read-only file system" in outcome.output
        assert "Traceback" not in outcome.output
        assert "CELEBDIT_HOME" in outcome.output
