"""Start a program with a listening socket of its parent, in the way of systemd: descriptor 3, `LISTEN_FDS` and `LISTEN_PID`.

Run as a file, `inherited_socket.py DESCRIPTOR PROGRAM [ARGUMENT...]`: the process becomes the program, because `LISTEN_PID` must be its id.
"""

import os
import sys

_FIRST = 3


def become(descriptor: int, command: list[str]) -> None:
    """Replace this process by `command`, which inherits the socket."""
    if descriptor != _FIRST:
        os.dup2(descriptor, _FIRST)
        os.close(descriptor)
    os.set_inheritable(_FIRST, True)
    os.execve(command[0], command, {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())})  # noqa: S606


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
