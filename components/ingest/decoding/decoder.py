"""A worker that decodes untrusted bytes: a process of its own, with little memory and nothing to lose.

    python -m components.ingest.decoding.decoder '{"image_px": 256, ...}' MOST_MEMORY_BYTES [ARCHIVE]

Promises: one answer per candidate, in order; it opens no file and no connection, and reads only standard input and the open file whose
number is ARCHIVE; its memory is capped by the kernel, at what each question allows, so that a bomb ends in a verdict or in this process's
death, never in the machine's. How questions and answers look is in `frames.py`, how they are asked in `pool.py`.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from components.ingest.decoding.frames import Facts, read_blobs, read_head, told, write_frame
from components.ingest.decoding.images import judge, thumbnail
from components.ingest.limits import Limits
from components.ingest.verdicts import Rejected
from components.ingest.zip_entry import EntryDamaged, Packed, read_packed
from components.system.process import die_with_parent

_NO_THUMBNAIL = ("too_many_bytes", "not_an_image", "decompression_bomb", "too_many_pixels", "out_of_memory")


def main() -> None:
    """Answer frames on standard input until it ends."""
    die_with_parent()
    limits = Limits(**json.loads(sys.argv[1]))
    archive = int(sys.argv[3]) if len(sys.argv) > 3 else None
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not speak into the answers
    allow = _cap_memory(int(sys.argv[2]))
    while head := read_head(sys.stdin.buffer):
        allow(head["memory_bytes"])
        blobs = read_blobs(sys.stdin.buffer, head)
        if head["op"] == "judge":
            told_ones = [_judged(blob, packed, archive, limits) for blob, packed in zip(blobs, head["packed"], strict=True)]
        else:
            told_ones = [([], thumbnail(blob, limits)) for blob in blobs]
        write_frame(answers, {"facts": [facts for facts, _ in told_ones]}, [blob for _, blob in told_ones])


def _judged(data: bytes, packed: list[int | str] | None, archive: int | None, limits: Limits) -> tuple[Facts, bytes]:
    lies_at = None
    try:
        if packed is not None:
            assert archive is not None, "whoever sends packed candidates has given their archive"
            data, lies_at = read_packed(archive, Packed(*packed), limit=limits.max_image_bytes + 1)  # type: ignore[arg-type]
        verdict = judge(data, limits)
    except EntryDamaged as damaged:
        verdict = Rejected("damaged_entry", str(damaged))
    except MemoryError:
        verdict = Rejected("out_of_memory", "takes more memory than a worker may use")
    if isinstance(verdict, Rejected) and verdict.code not in (*_NO_THUMBNAIL, "damaged_entry"):
        verdict = replace(verdict, thumbnail=thumbnail(data, limits))
    return told(verdict, data, lies_at=lies_at, known=packed is None or lies_at is not None)


def _cap_memory(most_bytes: int) -> Callable[[int], None]:
    """Let the kernel refuse memory beyond what is in use now and `most_bytes`; also no core file and no new file.

    Returns how to lower the cap, or raise it up to that again.
    """
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else None

    def allow(memory_bytes: int) -> None:
        if in_use is not None:
            resource.setrlimit(resource.RLIMIT_AS, (in_use + memory_bytes, in_use + most_bytes))

    with suppress(OSError, ValueError):  # not every system has these limits
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    allow(most_bytes)
    return allow


if __name__ == "__main__":
    main()
