"""Take away from this process what a parser of untrusted bytes does not need.

Promises: after `confine`, on Linux on x86-64 and ARM64, the kernel refuses to open files, sockets and other processes, and to start
programs, without a privilege and in a microsecond; elsewhere, and where the kernel has no filters, nothing changes and False is returned.
Memory, new files and core files are limited wherever the system has such limits. A process cannot undo any of it.
"""

import ctypes
import errno
import platform
import resource
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from components.system.refused_calls import MACHINES, REFUSED

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SPECULATION_STAYS = 4  # SECCOMP_FILTER_FLAG_SPEC_ALLOW: without it, kernels before 5.16 slow the process down
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_X32_CALLS = 0x40000000


def limit_memory(max_bytes: int) -> Callable[[int], None]:
    """Limit memory to what is in use now plus `max_bytes`, and forbid core files and new files.

    Returns a function that sets a lower limit, or raises it again up to this one.
    """
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else None

    def allow(memory_bytes: int) -> None:
        if in_use is not None:
            resource.setrlimit(resource.RLIMIT_AS, (in_use + memory_bytes, in_use + max_bytes))

    with suppress(OSError, ValueError):  # some systems do not have these limits
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    allow(max_bytes)
    return allow


def confine() -> bool:
    """Refuse this process files, sockets, programs and other processes from now on; return whether the system does so.

    Files that are open stay open. Import everything before: a module that is imported later is a file that cannot be opened.
    """
    machine = MACHINES.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None
    if machine is None:
        return False
    column, architecture, seccomp = machine
    program = _filter(architecture, [number for numbers in REFUSED.values() if (number := numbers[column]) is not None])
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and their address.
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return any(libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, flags, described) == 0 for flags in (_SPECULATION_STAYS, 0))


def can_confine() -> bool:
    """Return whether the system can confine a process; found out by one that ends at once."""
    # Not above: the processes that are confined need none of it.
    import subprocess  # noqa: PLC0415

    from components.system.child_environment import child_environment  # noqa: PLC0415
    from components.system.python_process import python_command  # noqa: PLC0415

    command = python_command("components.system.confinement")
    return subprocess.run(command, env=child_environment("decoder"), cwd="/", check=False, capture_output=True).returncode == 0


def is_confined(process: int) -> bool:
    """Return whether the kernel filters the system calls of the process with this id."""
    with suppress(OSError):
        return "\nSeccomp:\t2\n" in Path(f"/proc/{process}/status").read_text()
    return False


def _filter(architecture: int, refused: list[int]) -> bytes:
    """Return a program for the kernel: refuse calls of another architecture and those in `refused`, allow the others."""
    refuse_at = 5 + len(refused)

    def jump(kind: int, value: int, *, at: int, yes: int | None = None, no: int | None = None) -> bytes:
        return struct.pack("@HBBI", kind, 0 if yes is None else yes - at - 1, 0 if no is None else no - at - 1, value)

    def plain(kind: int, value: int) -> bytes:
        return struct.pack("@HBBI", kind, 0, 0, value)

    return b"".join(
        (
            plain(_LOAD, _ARCHITECTURE_AT),
            jump(_JUMP_EQUAL, architecture, at=1, no=refuse_at),
            plain(_LOAD, _NUMBER_AT),
            jump(_JUMP_AT_LEAST, _X32_CALLS, at=3, yes=refuse_at),
            *(jump(_JUMP_EQUAL, number, at=4 + place, yes=refuse_at) for place, number in enumerate(refused)),
            plain(_RETURN, _ALLOW),
            plain(_RETURN, _REFUSE),
        )
    )


if __name__ == "__main__":
    sys.exit(0 if confine() else 1)
