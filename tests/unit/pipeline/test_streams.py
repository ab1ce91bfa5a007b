"""Standard streams that are full, closed or have lost their reader: what was asked for is done, and the exit code says how it ended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from celebdit_testing.command import COMMAND

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def through_shell(redirected: str, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line with its streams as a shell redirects them."""
    line = f'{before} "$@" {redirected}'
    return subprocess.run(["bash", "-c", line, "bash", *COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_the_device_takes_nothing() -> None:
    with pytest.raises(OSError, match="No space left"), FULL.open("wb", buffering=0) as full:
        full.write(b"x")


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_full_disk_under_stdout_is_a_temporary_failure_in_one_line(as_json: list[str]) -> None:
    done = through_shell(">/dev/full", "config", "show", "smoke", *as_json)
    assert done.returncode == 75
    assert "Traceback" not in done.stderr
    assert "celebdit: a file or the output cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", "2>/dev/full </dev/null", "2> >(exit 0)"])
@pytest.mark.parametrize(("arguments", "code"), [(["config", "show", "smoke"], 0), (["config", "show", "smok"], 2), (["bogus"], 2)])
def test_messages_that_cannot_be_written_change_neither_the_result_nor_the_exit_code(
    redirected: str, arguments: list[str], code: int
) -> None:
    done = through_shell(redirected, *arguments)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("[data]\n") == (code == 0)


def test_an_internal_error_is_reported_by_its_code_even_if_nothing_can_be_written() -> None:
    script = "import pipeline.cli; pipeline.cli._COMMANDS['bogus'] = ('no.such.module', 'x', ''); pipeline.cli.main(['bogus', '--json'])"
    done = subprocess.run(["bash", "-c", '"$@" >/dev/full 2>/dev/full', "bash", sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == 70


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pipeline.streams import safe_streams\nwith safe_streams():\n"
        "    opened = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "    print('text', file=sys.stderr); print('text'); sys.stdout.flush()\n"
        "    os._exit(opened)"
    )
    target = tmp_path / "file"
    command = ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-c", script, str(target)]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode > 2
    assert target.read_bytes() == b""


@pytest.mark.parametrize("arguments", [["--help"], ["models", "--help"], ["config", "show", "demo"], ["config", "presets", "--json"]])
def test_a_reader_that_has_gone_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writing)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_a_pipe_other_than_stdout_that_breaks_is_no_success() -> None:
    script = (
        "import pipeline.cli, pipeline.commands.config as config\n"
        "def broken(*_, **__):\n    raise BrokenPipeError(32, 'Broken pipe')\n"
        "config.preset_names = broken\n"
        "pipeline.cli.main(['config', 'presets'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 75
    assert "Broken pipe" in done.stderr
