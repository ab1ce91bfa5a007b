"""What a worker is asked and what it answers, as bytes: a line of JSON that says how long each blob is, then the blobs.

Promises: nothing is unpickled; a stream that ends inside a frame is an error, one that ends between frames is the end. What is asked is in
`pool.py`, who answers in `decoder.py`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import IO, Any

from components.ingest.candidates import Candidate
from components.ingest.verdicts import Accepted, Extent, Rejected, Verdict

Facts = dict[str, Any]
_FACTS = [field.name for field in fields(Accepted) if field.name != "data"]


def write_frame(stream: IO[bytes], head: dict[str, Any], blobs: Sequence[bytes]) -> None:
    """Write one frame; `head` is what the JSON says beside the blobs' sizes."""
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


def told(verdict: Verdict, data: bytes, *, lies_at: int | None, known: bool) -> tuple[Facts, bytes]:
    """Return the verdict on `data` as facts and a blob. The bytes are sent back only if the asker does not know them, or where they lie."""
    if isinstance(verdict, Rejected):
        return {"code": verdict.code, "detail": verdict.detail}, verdict.thumbnail
    kept = verdict.data is data
    facts = {name: getattr(verdict, name) for name in _FACTS}
    facts["lies_at"] = lies_at if kept else None
    facts["sent"] = not (kept and known)
    return facts, verdict.data if facts["sent"] else b""  # type: ignore[return-value]


def heard(facts: Facts, blob: bytes, candidate: Candidate) -> Verdict:
    """Return the verdict on `candidate` that `told` told."""
    if "code" in facts:
        return Rejected(facts["code"], facts["detail"], blob)
    lies_at, sent = facts.pop("lies_at"), facts.pop("sent")
    data: bytes | Extent = blob if sent else candidate.data
    if not sent and candidate.packed is not None:
        data = Extent(lies_at, candidate.packed.size_bytes)
    facts.update({name: tuple(facts[name]) for name in ("rules", "source_px", "mean", "std")})
    return Accepted(data=data, **facts)
