"""What is recorded of a sweep, and the state that the records add up to.

Promises: pure; the same records give the same state, in whatever order they are read: of two records of the same thing the first by number
counts, so that a record that was written twice changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from model.frozen_config import FrozenConfig


class Piece(NamedTuple):
    """One training of a trial on one rung: the work that is done at once."""

    steps: int
    trial: int
    seed: int


class _Record(FrozenConfig):
    at_s: float
    """Seconds since the epoch."""


class Asked(_Record):
    """The settings of a trial, and what they were chosen by."""

    kind: Literal["asked"] = "asked"
    trial: int
    values: dict[str, Any]
    sampler: str
    sampler_version: str | None = None
    history: int = 0
    """Scores of other trials that the sampler knew."""


class Started(_Record):
    """A run of a trial was started."""

    kind: Literal["started"] = "started"
    piece: Piece
    run_id: str


class Scored(_Record):
    """A run of a trial was measured."""

    kind: Literal["scored"] = "scored"
    piece: Piece
    run_id: str | None
    """The pipeline run; None if storage had the measurement already."""
    run_key: str
    value: float
    low: float | None = None
    high: float | None = None
    """95 % interval of the value for these weights, where the metric has one."""
    device_s: float = 0.0
    grid_uri: str | None = None


class Failed(_Record):
    """A run of a trial failed; with exit code 3 for good: its training became non-finite, or its data was refused."""

    kind: Literal["failed"] = "failed"
    piece: Piece
    run_id: str | None
    exit_code: int
    message: str
    device_s: float = 0.0


class Decided(_Record):
    """Which trials of a rung go on."""

    kind: Literal["decided"] = "decided"
    steps: int
    kept: tuple[int, ...]
    """Best first; on the last rung the winner alone."""
    reasons: dict[int, str]
    """Of every trial of the rung."""


class Finished(_Record):
    """The winner's final run: measured by the full protocol, judged by the gate, registered if it passed."""

    kind: Literal["finished"] = "finished"
    trial: int
    run_id: str
    run_key: str | None = None
    gate: Literal["pass", "fail"]
    reasons: tuple[str, ...] = ()
    version: str | None = None
    model: str | None = None
    metric: str | None = None
    value: float | None = None
    std: float | None = None
    """The standard error of the value."""
    noise: float | None = None
    """The value of pure noise, where it was measured."""
    device_s: float = 0.0
    url: str | None = None


Record = Annotated[Asked | Started | Scored | Failed | Decided | Finished, Field(discriminator="kind")]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)
NON_FINITE = 3
"""The exit code that ends a trial: it is the outcome of its settings, not of the circumstances."""


@dataclass
class SweepState:
    """A sweep as its records describe it."""

    asked: dict[int, Asked] = field(default_factory=dict)
    started: dict[Piece, Started] = field(default_factory=dict)
    """The newest start of each piece."""
    scored: dict[Piece, Scored] = field(default_factory=dict)
    failed: dict[Piece, Failed] = field(default_factory=dict)
    """The newest failure of pieces that have no score."""
    decided: dict[int, Decided] = field(default_factory=dict)
    finished: Finished | None = None
    device_s: float = 0.0

    @classmethod
    def of(cls, records: Iterable[Record]) -> "SweepState":
        """Return the state after `records`, in the order of their numbers."""
        state = cls()
        for record in records:
            state.add(record)
        return state

    def add(self, record: Record) -> None:
        """Take one more record into account."""
        match record:
            case Asked():
                self.asked.setdefault(record.trial, record)
            case Started():
                self.started[record.piece] = record
            case Scored():
                if record.piece not in self.scored:
                    self.device_s += record.device_s
                self.scored.setdefault(record.piece, record)
                self.failed.pop(record.piece, None)
            case Failed():
                self.device_s += record.device_s
                if record.piece not in self.scored:
                    self.failed[record.piece] = record
            case Decided():
                self.decided.setdefault(record.steps, record)
            case Finished():
                if self.finished is None:
                    self.finished, self.device_s = record, self.device_s + record.device_s

    def has_ended_for_good(self, piece: Piece) -> bool:
        """Return whether nothing is left to do for `piece`: it has a score, or its settings cannot be trained."""
        failure = self.failed.get(piece)
        return piece in self.scored or (failure is not None and failure.exit_code == NON_FINITE)

    def values(self, trial: int) -> Mapping[str, Any]:
        """Return the settings of a trial."""
        return self.asked[trial].values
