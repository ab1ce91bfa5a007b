"""Worker process that decodes untrusted bytes with little memory and without credentials.

    python -m components.ingest.decoding.decoder '{"image_px": 256, ...}' MAX_MEMORY_BYTES [ARCHIVE]

Promises: one answer per candidate, in order; it opens no file and no connection, and reads only standard input and the open file whose
number is ARCHIVE; the kernel limits its memory to what each request allows, so that a decompression bomb ends in a verdict or in
the death of this process only. The wire format is in `frames.py`; `pool.py` sends the requests.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from components.ingest.decoding.frames import AcceptedFacts, RejectedFacts, encode_verdict, read_blobs, read_head, write_frame
from components.ingest.decoding.images import judge, thumbnail
from components.ingest.limits import Limits
from components.ingest.verdicts import Rejected
from components.ingest.zip_entry import EntryDamaged, ZipEntry, read_zip_entry
from components.system.process import die_with_parent

_NO_THUMBNAIL = ("too_many_bytes", "not_an_image", "decompression_bomb", "too_many_pixels", "out_of_memory")


def main() -> None:
    """Answer frames on standard input until it ends."""
    die_with_parent()
    limits = Limits(**json.loads(sys.argv[1]))
    archive = int(sys.argv[3]) if len(sys.argv) > 3 else None
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    allow = _cap_memory(int(sys.argv[2]))
    while head := read_head(sys.stdin.buffer):
        allow(head["memory_bytes"])
        blobs = read_blobs(sys.stdin.buffer, head)
        answers_and_blobs: list[tuple[RejectedFacts | AcceptedFacts | None, bytes]]
        if head["op"] == "judge":
            answers_and_blobs = [_judge_one(blob, packed, archive, limits) for blob, packed in zip(blobs, head["packed"], strict=True)]
        else:
            answers_and_blobs = [(None, thumbnail(blob, limits)) for blob in blobs]
        write_frame(answers, {"facts": [facts for facts, _ in answers_and_blobs]}, [blob for _, blob in answers_and_blobs])


def _judge_one(
    data: bytes, packed: list[int | str] | None, archive: int | None, limits: Limits
) -> tuple[RejectedFacts | AcceptedFacts, bytes]:
    archive_offset = None
    try:
        if packed is not None:
            assert archive is not None, "zip entries are sent only with their archive"
            data, archive_offset = read_zip_entry(archive, ZipEntry(*packed), limit=limits.max_image_bytes + 1)  # type: ignore[arg-type]
        verdict = judge(data, limits)
    except EntryDamaged as damaged:
        verdict = Rejected("damaged_entry", str(damaged))
    except MemoryError:
        verdict = Rejected("out_of_memory", "takes more memory than a worker may use")
    if isinstance(verdict, Rejected) and verdict.code not in (*_NO_THUMBNAIL, "damaged_entry"):
        verdict = replace(verdict, thumbnail=thumbnail(data, limits))
    return encode_verdict(verdict, data, archive_offset=archive_offset, known=packed is None or archive_offset is not None)


def _cap_memory(max_bytes: int) -> Callable[[int], None]:
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


if __name__ == "__main__":
    main()
