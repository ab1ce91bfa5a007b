"""What is no regular file is refused without being opened: reading a pipe waits for ever, and a device never ends."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import BadInput
from components.ingest.limits import Budget
from components.ingest.sources.folders import FolderSource
from components.ingest.sources.paths import open_path
from components.weights.torch_files import read_tensors
from pipeline.config import load_config

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=10**6, max_ratio=200)


@pytest.fixture(params=["pipe", "socket", "zeros", "link to zeros", "link to a pipe"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path, pipe = tmp_path / "special.toml", tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as bound:
        if request.param == "socket":
            bound.bind(str(path))
        elif request.param.startswith("link"):
            path.symlink_to(pipe if "pipe" in request.param else "/dev/zero")
        yield {"pipe": pipe, "zeros": Path("/dev/zero")}.get(request.param, path)


def within(seconds: float, call: object, *arguments: object) -> str:
    """Return the message of the BadInput that `call` raises soon."""
    started_s = time.monotonic()
    with pytest.raises(BadInput) as refused:
        call(*arguments)  # type: ignore[operator]
    assert time.monotonic() - started_s < seconds
    return refused.value.message


def test_a_special_file_is_no_source(special: Path) -> None:
    assert "is a device, pipe or socket" in within(2, open_path, str(special), 8, None)
    assert "is a device, pipe or socket" in within(2, open_path, f"file://{special}", 8, None)


def test_a_special_file_is_no_configuration(special: Path) -> None:
    assert "is a device, pipe or socket" in within(2, load_config, str(special))


def test_a_special_file_is_no_checkpoint(special: Path) -> None:
    with pytest.raises(BadInput, match="is a device, pipe or socket"):
        read_tensors(special, max_bytes=10**6)


def test_a_base_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "base.toml")
    (tmp_path / "run.toml").write_text('base = "base.toml"\n')
    assert "base.toml is a device, pipe or socket" in within(2, load_config, str(tmp_path / "run.toml"))


@pytest.mark.parametrize("command", [["config", "show"], ["ingest", "--image-px", "8", "--source"]])
def test_the_command_line_ends_with_2_at_once(tmp_path: Path, command: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    program = str(Path(sys.executable).parent / "celebdit")
    home = ["--home", str(tmp_path / "home")] if command[0] == "ingest" else []
    done = subprocess.run([program, *command, "pipe.toml", *home], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "pipe" in done.stderr
    assert not (tmp_path / "home").exists()


def test_special_files_in_a_folder_are_rejected_unopened_and_a_huge_one_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "b.jpg")
    with (tmp_path / "c.jpg").open("wb") as file:
        file.truncate(60 * 2**30)
    source, started_s = FolderSource(tmp_path), time.monotonic()
    before = source.fingerprint()
    assert time.monotonic() - started_s < 20, "sixty gigabytes take minutes"
    assert [candidate.refused and candidate.refused.code for candidate in source.candidates(BUDGET)] == [None, "special_file", None]
    os.truncate(tmp_path / "c.jpg", 61 * 2**30)
    assert source.fingerprint() != before
