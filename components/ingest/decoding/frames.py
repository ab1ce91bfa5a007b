"""What a decoder sends of a verdict; `pool.py` sends requests, `decoder.py` answers, in frames (`../wire.py`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from components.ingest.verdicts import Accepted, Code, Extent, Rejected, Rule, Verdict

if TYPE_CHECKING:  # a decoder knows no names of files, and starts sooner without
    from components.ingest.candidates import Candidate

Facts = list[Any]
"""A `RejectedFacts` or `AcceptedFacts` after JSON, which encodes named tuples as lists."""


class RejectedFacts(NamedTuple):
    """What a decoder sends of a rejected candidate."""

    code: Code
    detail: str


class AcceptedFacts(NamedTuple):
    """What a decoder sends of an accepted candidate; the blob holds `small_bytes` of reduced pixels, then the image if `data_sent`."""

    extension: Literal["jpg", "png"]
    sha256: str
    rules: Sequence[Rule]
    source_px: Sequence[int]
    source_format: str
    perceptual_hash: int | None
    detail: str
    archive_offset: int | None
    small_bytes: int
    data_sent: bool


def encode_verdict(
    verdict: Verdict, data: bytes, *, archive_offset: int | None, known: bool
) -> tuple[RejectedFacts | AcceptedFacts, bytes]:
    """Return the verdict on `data` as facts and a blob; the bytes are sent back only if the pool does not have them (`known`)."""
    if isinstance(verdict, Rejected):
        return RejectedFacts(verdict.code, verdict.detail), verdict.thumbnail
    assert isinstance(verdict.data, bytes), "a decoder has the bytes of what it accepts"
    unchanged = verdict.data is data
    data_sent = not (unchanged and known)
    facts = AcceptedFacts(
        extension=verdict.extension,
        sha256=verdict.sha256,
        rules=verdict.rules,
        source_px=verdict.source_px,
        source_format=verdict.source_format,
        perceptual_hash=verdict.perceptual_hash,
        detail=verdict.detail,
        archive_offset=archive_offset if unchanged else None,
        small_bytes=len(verdict.small),
        data_sent=data_sent,
    )
    return facts, verdict.small + verdict.data if data_sent else verdict.small


def decode_verdict(facts: Facts, blob: bytes, candidate: "Candidate") -> Verdict:
    """Return the verdict on `candidate` from the output of `encode_verdict`."""
    if len(facts) == len(RejectedFacts._fields):
        code, detail = RejectedFacts(*facts)
        return Rejected(code, detail, blob)
    accepted = AcceptedFacts(*facts)
    data: bytes | Extent = blob[accepted.small_bytes :] if accepted.data_sent else candidate.data
    if not accepted.data_sent and candidate.packed is not None:
        assert accepted.archive_offset is not None, "a decoder that sends no bytes sends their offset"
        data = Extent(accepted.archive_offset, candidate.packed.size_bytes)
    width, height = accepted.source_px
    return Accepted(
        data=data,
        extension=accepted.extension,
        sha256=accepted.sha256,
        rules=tuple(accepted.rules),
        source_px=(width, height),
        source_format=accepted.source_format,
        small=blob[: accepted.small_bytes] if accepted.data_sent else blob,
        perceptual_hash=accepted.perceptual_hash,
        detail=accepted.detail,
    )
