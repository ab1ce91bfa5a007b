"""A worker that decodes untrusted bytes: a process of its own, with little memory and nothing to lose.

    python -m components.ingest.decoder '{"image_px": 256, ...}' MEMORY_BYTES

Promises: one answer per candidate, in order; it opens no file and no connection; its memory is capped by the kernel, so that a bomb ends in
a verdict or in this process's death, never in the machine's. Both directions are frames of a JSON line and raw bytes: the parent unpickles
nothing. How answers are asked for is in `pool.py`.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from components.ingest.images import Limits, judge, thumbnail
from components.ingest.verdicts import Accepted, Rejected
from components.process import die_with_parent

_NO_THUMBNAIL = ("too_many_bytes", "not_an_image", "decompression_bomb", "too_many_pixels", "out_of_memory")


def main() -> None:
    """Answer frames on standard input until it ends."""
    die_with_parent()
    limits = Limits(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not speak into the answers
    _cap_memory(int(sys.argv[2]))
    while frame := read_frame(sys.stdin.buffer):
        header, blobs = frame
        answer = _judged if header["op"] == "judge" else _pictured
        write_frame(answers, *zip(*(answer(blob, limits) for blob in blobs), strict=True))


def _judged(data: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
    try:
        verdict = judge(data, limits)
    except MemoryError:
        verdict = Rejected("out_of_memory", "takes more memory than a worker may use")
    if isinstance(verdict, Accepted):
        facts = asdict(verdict) | {"data": None, "kept": verdict.data is data}
        return facts, b"" if verdict.data is data else verdict.data
    return {"code": verdict.code, "detail": verdict.detail}, b"" if verdict.code in _NO_THUMBNAIL else thumbnail(data, limits)


def _pictured(data: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
    return {}, thumbnail(data, limits)


def _cap_memory(allowance_bytes: int) -> None:
    """Let the kernel refuse memory beyond what is in use now and `allowance_bytes`; also no core file and no new file."""
    with suppress(OSError, ValueError):  # not every system has these limits
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + allowance_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def write_frame(stream: IO[bytes], items: tuple[dict[str, Any], ...], blobs: tuple[bytes, ...], op: str = "") -> None:
    """Write a line of JSON that says how long each blob is, then the blobs."""
    head = {"op": op, "items": items, "sizes": [len(blob) for blob in blobs]}
    stream.write(json.dumps(head, separators=(",", ":")).encode() + b"\n" + b"".join(blobs))
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    """Read one frame, or None at the end of the stream."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    return header, list(_blobs(stream, header["sizes"]))


def _blobs(stream: IO[bytes], sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        blob = stream.read(size)
        if len(blob) != size:
            raise EOFError("the stream ended inside a frame")
        yield blob


if __name__ == "__main__":
    main()
