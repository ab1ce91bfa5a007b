"""Two first demos at once generate their faces once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.storage import file_sha256

DEMO = """
import sys
from pathlib import Path
from pipeline.commands import run
run._DEMO_FACES = 40
print("ready", flush=True)
sys.stdin.readline()
seen = []
run._make_archive(Path(sys.argv[1]), lambda event: seen.append(event.facts.get("text")))
print(int("faces" in seen), int(any("another demo" in str(text) for text in seen)), flush=True)
"""


def start(archive: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", DEMO, str(archive)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.fault
@pytest.mark.slow
def test_two_first_demos_make_one_archive_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "demo" / "faces.zip"
    archive.parent.mkdir()
    (archive.parent / ".faces.zip.1-00000000.partial").write_bytes(b"left by a killed demo")
    processes = [start(archive), start(archive)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(results) == [["0", "1"], ["1", "0"]], "one generates, the other waits"
    assert sorted(path.name for path in archive.parent.iterdir()) == ["faces.zip"]
    digest = file_sha256(archive)
    archive.unlink()
    killed = start(archive)
    assert killed.stdin is not None
    killed.stdin.write("go\n")
    killed.stdin.flush()
    while not list(archive.parent.glob(".faces.zip.*.partial")):
        assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    again = start(archive)
    assert again.communicate("go\n", timeout=60)[0].split() == ["1", "0"]
    assert file_sha256(archive) == digest
    assert sorted(path.name for path in archive.parent.iterdir()) == ["faces.zip"]
