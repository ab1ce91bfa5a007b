"""What a confined process can still do: compute, and read what is open."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from components.system.confinement import can_confine
from components.system.python_process import python_command

_ATTEMPTS = """
import ctypes, os, socket, sys, tempfile
from components.system.confinement import confine
held = os.open("/proc/self/status", os.O_RDONLY)
parent = os.getppid()
before = (sys.argv[1] == "before")
confined = before or confine()
attempts = {
    "a file": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
    "a new file": lambda: os.close(os.open("/dev/null", os.O_WRONLY | os.O_CREAT)),
    "the environment of another process": lambda: os.close(os.open(f"/proc/{parent}/environ", os.O_RDONLY)),
    "an internet socket": lambda: socket.socket().close(),
    "a local socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "a pair of sockets": lambda: [end.close() for end in socket.socketpair()],
    "a signal": lambda: os.kill(parent, 0),
    "a program": lambda: os.execve("/nonexistent", ["x"], {}),
    "a removal": lambda: os.unlink("/nonexistent"),
    "a name": lambda: os.rename("/nonexistent", "/nonexistent2"),
    "a folder": lambda: os.rmdir("/nonexistent"),
}
for what, attempt in attempts.items():
    try:
        attempt()
        print(what, "done")
    except PermissionError:
        print(what, "refused")
    except FileNotFoundError:
        print(what, "done")  # the kernel looked for it
print("memory", len(bytearray(10**7)))
print("held", "Seccomp:\\t2" in os.read(held, 10**5).decode())
"""


def attempts(when: str, *before: str) -> dict[str, str]:
    done = subprocess.run([*before, sys.executable, "-c", _ATTEMPTS, when], capture_output=True, text=True, timeout=60, check=True)
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


needs_filter = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="the kernel of this system has no filters we know"
)


@needs_filter
@pytest.mark.parametrize("user", ["the own user", "another user"])
def test_a_confined_process_opens_nothing_and_reaches_no_process(user: str) -> None:
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if user == "another user" else []
    if other and os.getuid() != 0:
        pytest.skip("only root can become another user")
    free, confined = attempts("before"), attempts("after", *other)
    assert (confined.pop("memory"), confined.pop("held")) == ("10000000", "True")
    assert (free.pop("memory"), free.pop("held")) == ("10000000", "False")
    assert set(confined.values()) == {"refused"}, confined
    assert set(free.values()) == {"done"}, "each of the attempts is possible without"


@needs_filter
def test_whether_it_works_here_is_found_out_without_confining_this_process() -> None:
    assert can_confine()
    with Path("/proc/self/status").open() as status:
        assert "Seccomp:\t2\n" not in status.read()


def test_the_command_of_a_python_child_ignores_the_current_folder() -> None:
    assert python_command("module", "argument") == [sys.executable, "-P", "-m", "module", "argument"]
