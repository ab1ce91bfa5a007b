"""Wire format between pool and decoder: a line of JSON with the size of each blob, then the blobs.

Promises: nothing is unpickled; a stream that ends inside a frame is an error, one that ends between frames is the end. `pool.py` sends
requests, `decoder.py` answers.
"""

import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

from components.ingest.candidates import Candidate
from components.ingest.verdicts import Accepted, Extent, Rejected, Verdict

Facts = list[Any]
"""Two for a rejected candidate, nine for an accepted one; a list, because encoding field names takes longer than their values."""


def write_frame(stream: IO[bytes], head: dict[str, Any], blobs: Sequence[bytes]) -> None:
    """Write one frame; `head` is what the JSON holds beside the blobs' sizes."""
    line = json.dumps({**head, "sizes": [len(blob) for blob in blobs]}, separators=(",", ":"))
    stream.write(b"".join((line.encode(), b"\n", *blobs)))
    stream.flush()


def read_head(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read a frame up to its blobs, or None at the end of the stream."""
    line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def read_blobs(stream: IO[bytes], head: dict[str, Any]) -> list[bytes]:
    """Read the blobs of the frame that `head` begins.

    Raises:
        EOFError: if the stream ends before.
    """
    return list(_blobs(stream, head["sizes"]))


def _blobs(stream: IO[bytes], sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        blob = stream.read(size)
        if len(blob) != size:
            raise EOFError("the stream ended inside a frame")
        yield blob


def encode_verdict(verdict: Verdict, data: bytes, *, lies_at: int | None, known: bool) -> tuple[Facts, bytes]:
    """Return the verdict on `data` as facts and a blob; the bytes are sent back only if the pool does not have them (`known`)."""
    if isinstance(verdict, Rejected):
        return [verdict.code, verdict.detail], verdict.thumbnail
    assert isinstance(verdict.data, bytes), "a decoder has the bytes of what it accepts"
    kept = verdict.data is data
    sent = not (kept and known)
    about = [verdict.extension, verdict.sha256, verdict.rules, verdict.source_px, verdict.source_format, verdict.perceptual_hash]
    blob = verdict.small + verdict.data if sent else verdict.small
    return [*about, lies_at if kept else None, len(verdict.small), sent], blob


def decode_verdict(facts: Facts, blob: bytes, candidate: Candidate) -> Verdict:
    """Return the verdict on `candidate` from the output of `encode_verdict`."""
    if len(facts) == 2:
        return Rejected(facts[0], facts[1], blob)
    extension, sha256, rules, source_px, source_format, perceptual_hash, lies_at, small_bytes, sent = facts
    data: bytes | Extent = blob[small_bytes:] if sent else candidate.data
    if not sent and candidate.packed is not None:
        data = Extent(lies_at, candidate.packed.size_bytes)
    small = blob[:small_bytes] if sent else blob
    return Accepted(data, extension, sha256, tuple(rules), tuple(source_px), source_format, small, perceptual_hash)
