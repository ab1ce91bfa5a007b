"""One node of a training on several: `python -m components.train.trainjob.node s3://.../spec.json 320`, started by a TrainJob.

Promises: the node's ranks find each other through the PET_ variables that Kubeflow Trainer sets; the reason of a failure is written to
the container's termination message, as one JSON object; SIGTERM ends the node at any time, although it is process 1 of its container, whose
signals the kernel drops if it does not handle them. The ranks run `worker.py`.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from types import FrameType

from components.errors import Failure, Preempted, shorten

_MOST_MESSAGE_BYTES = 2048
"""Kubernetes keeps 4096 bytes of a container, and 12 KiB of a pod, which containers that a site adds share in equal parts."""


def main() -> None:
    """Run this node and leave with the exit code of what happened."""
    early: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: early.append(number))
    # Complete before `end_at_once` can be called: a module that is still being imported may lack a name. Takes 0.05 s.
    import components.runtime.redact  # noqa: PLC0415
    import components.settings  # noqa: F401, PLC0415
    from components.system.service_links import drop_service_links  # noqa: PLC0415

    signal.signal(signal.SIGTERM, end_at_once)
    drop_service_links()
    if early:
        end_at_once(early[0], None)
    # Takes a second or more: boto3 and pydantic.
    from components.train.trainjob.node_ranks import run_node  # noqa: PLC0415

    run_node(sys.argv[1:])


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End this process, before it has ranks that could save something; while it has, `launch` handles the signal."""
    error = Preempted("the node was asked to stop before its ranks were started", hint="run it again: finished work is kept")
    write_termination_message(error, replace=False)
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{error.message}\n".encode())
    os._exit(Preempted.exit_code)


def write_termination_message(error: Exception, *, replace: bool = True) -> None:
    """Write why this node failed to the termination message, or only if there is none yet, as short as Kubernetes keeps it."""
    # Imported here, because SIGTERM is handled before anything that takes time.
    from components.process_settings import termination_message_path  # noqa: PLC0415
    from components.runtime.redact import redactor  # noqa: PLC0415

    failure, redact = Failure.of(error), redactor()
    message = _encode(asdict(failure), redact(failure.message), None if failure.hint is None else redact(failure.hint))
    path = termination_message_path()
    with suppress(OSError):
        if replace or not path.exists() or path.stat().st_size == 0:
            path.write_bytes(message)


def _encode(facts: dict[str, object], message: str, hint: str | None) -> bytes:
    """Return `facts` as JSON of at most `_MOST_MESSAGE_BYTES`, with as much of the message and the hint as fits."""
    characters = _MOST_MESSAGE_BYTES
    while True:
        texts = {
            "message": shorten(message, max_characters=characters),
            "hint": None if hint is None else shorten(hint, max_characters=characters),
        }
        encoded = json.dumps({**facts, **texts}, ensure_ascii=False).encode(errors="replace")
        if len(encoded) <= _MOST_MESSAGE_BYTES or characters == 0:
            return encoded
        characters = characters * 3 // 4


if __name__ == "__main__":
    main()
