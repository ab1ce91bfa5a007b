"""Worker process that decodes untrusted bytes with little memory and without credentials.

    python -m components.ingest.decoding.decoder '{"image_px": 256, ...}' MAX_MEMORY_BYTES most|all [ARCHIVE]

Promises: one answer per candidate, in order; it opens no file and no connection, and reads only standard input and the open file whose
number is ARCHIVE, and the kernel holds it to that where it can (`system/confinement.py`); the kernel limits its memory to what each request
allows, and its processor time per image, so that a decompression bomb or an image that takes minutes ends in a verdict or in the death of
this process only. With "most" it decodes no AVIF, HEIC and JPEG XL, and answers a request that has one with no facts: `pool.py` then starts
a process with "all". The wire format is in `frames.py` and `../wire.py`; `pool.py` sends the requests.
"""

import json
import os
import sys
from dataclasses import replace
from typing import Any

from components.errors import shorten
from components.ingest.decoding.formats import is_loaded_for, load_all
from components.ingest.decoding.frames import AcceptedFacts, RejectedFacts, encode_verdict
from components.ingest.decoding.images import judge, thumbnail
from components.ingest.decoding.time_limit import TimeLimit, TimeLimitReached
from components.ingest.image_formats import HEAD_BYTES, image_format
from components.ingest.limits import Limits
from components.ingest.verdicts import NO_IMAGE, Accepted, Rejected
from components.ingest.wire import read_blobs, read_head, write_frame
from components.ingest.zip_entry import EntryDamaged, ZipEntry, read_zip_entry
from components.system.confinement import confine, limit_memory
from components.system.process import die_with_parent

_NO_THUMBNAIL = (
    "too_many_bytes",
    "not_an_image",
    "decompression_bomb",
    "too_many_pixels",
    "out_of_memory",
    "too_slow",
    "damaged_entry",
    "ignored",
)


class _NotLoaded(Exception):
    """A library that may decode an image is not loaded, and cannot be any more."""


def main() -> None:
    """Answer frames on standard input until it ends."""
    die_with_parent()
    limits = Limits(**json.loads(sys.argv[1]))
    time_limit = TimeLimit(limits.max_image_s)
    archive = int(sys.argv[4]) if len(sys.argv) > 4 else None
    if sys.argv[3] == "all":
        load_all()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    allow = limit_memory(int(sys.argv[2]))
    confine()
    while head := read_head(sys.stdin.buffer):
        allow(head["memory_bytes"])
        blobs = read_blobs(sys.stdin.buffer, head)
        answers_and_blobs: list[tuple[RejectedFacts | AcceptedFacts | None, bytes]]
        try:
            if head["op"] == "judge":
                candidates = zip(blobs, head["packed"], head["by_content"], strict=True)
                answers_and_blobs = [
                    _judge_one(*candidate, archive=archive, limits=limits, time_limit=time_limit) for candidate in candidates
                ]
            else:
                answers_and_blobs = [(None, _thumbnail(blob, limits, time_limit)) for blob in blobs]
        except _NotLoaded:
            write_frame(answers, {"facts": None}, [])
            continue
        write_frame(answers, {"facts": [facts for facts, _ in answers_and_blobs]}, [blob for _, blob in answers_and_blobs])


def _judge_one(
    data: bytes, packed: list[Any] | None, by_content: bool, *, archive: int | None, limits: Limits, time_limit: TimeLimit
) -> tuple[RejectedFacts | AcceptedFacts, bytes]:
    archive_offset = None
    verdict: Accepted | Rejected = NO_IMAGE
    try:
        with time_limit:
            entry = None if packed is None else ZipEntry(*packed)
            if entry is None or archive is None:
                verdict = _judge_loaded(data, limits)
            elif not by_content or image_format(read_zip_entry(archive, entry, limit=HEAD_BYTES)[0]) is not None:
                data, archive_offset = read_zip_entry(archive, entry, limit=limits.max_image_bytes + 1)
                verdict = _judge_loaded(data, limits)
    except _NotLoaded:
        raise
    except EntryDamaged as damaged:
        verdict = Rejected("damaged_entry", str(damaged))
    except MemoryError:
        verdict = Rejected("out_of_memory", "takes more memory than a worker may use")
    except TimeLimitReached:
        verdict = Rejected("too_slow", f"not decoded in {time_limit.seconds:g} s of processor time")
    except Exception as error:  # a parser's own fault; the worker's death would cost the batch and a start
        verdict = Rejected("truncated", shorten(f"{type(error).__name__}: {error}", max_characters=200))
    if isinstance(verdict, Rejected) and verdict.code not in _NO_THUMBNAIL:
        verdict = replace(verdict, thumbnail=_thumbnail(data, limits, time_limit))
    return encode_verdict(verdict, data, archive_offset=archive_offset, known=packed is None or archive_offset is not None)


def _judge_loaded(data: bytes, limits: Limits) -> Accepted | Rejected:
    if not is_loaded_for(data):
        raise _NotLoaded
    return judge(data, limits)


def _thumbnail(data: bytes, limits: Limits, time_limit: TimeLimit) -> bytes:
    try:
        with time_limit:
            return thumbnail(data, limits)
    except Exception:  # a rejected image may be anything, and can do without a thumbnail
        return b""


if __name__ == "__main__":
    main()
