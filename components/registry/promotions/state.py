"""What a registered model says of its champion: its aliases, its versions and its promotion log, as they were read together.

Promises: a change that was begun and not finished is neither counted nor dropped; entries about another model are listed apart.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from components.errors import BadInput
from components.registry.promotions.moves import (
    CHAMPION,
    ENTRY_PREFIX,
    PREVIOUS,
    START_PREVIOUS_ID,
    Move,
    Standing,
    VersionIdentity,
    exists,
    order,
    stack_after,
    standing_after,
)

OUTCOME_SUFFIX = ".outcome"

Outcome = Literal["done", "interrupted"]


@dataclass(frozen=True)
class Entry:
    """A move and how it ended: None if it was begun and nothing says that it was finished."""

    move: Move
    outcome: Outcome | None

    @property
    def counts(self) -> bool:
        """Whether the move is part of how the champion came to be."""
        return self.outcome == "done" and self.move.run_id is None


@dataclass(frozen=True)
class RegistryState:
    """One reading of a registered model."""

    model: str
    created_ms: int
    aliases: Mapping[str, str]
    versions: Mapping[str, VersionIdentity]
    entries: tuple[Entry, ...] = ()
    """Oldest first."""
    foreign: tuple[str, ...] = ()
    """Keys of tags that are named like entries and are none of this model."""

    @classmethod
    def of_tags(
        cls, model: str, created_ms: int, aliases: Mapping[str, str], versions: Mapping[str, VersionIdentity], tags: Mapping[str, str]
    ) -> "RegistryState":
        """Read the log among the tags of a registered model.

        Raises:
            BadInput: if a later release wrote some of it.
        """
        moves, foreign = [], []
        for key, text in tags.items():
            if not key.startswith(ENTRY_PREFIX) or key.endswith(OUTCOME_SUFFIX):
                continue
            move = Move.parse(key.removeprefix(ENTRY_PREFIX), text)
            if move is None or not move.is_of_model(created_ms):
                foreign.append(key)
            else:
                moves.append(move)
        entries = tuple(Entry(move, _outcome(move, tags)) for move in order(moves))
        return cls(model, created_ms, dict(aliases), dict(versions), entries, tuple(sorted(foreign)))

    @property
    def moves(self) -> list[Move]:
        """All moves, oldest first."""
        return [entry.move for entry in self.entries]

    def changes(self) -> list[tuple[str | None, str | None]]:
        """Return for each entry the champion before and after it by the log; of one that does not count, as its writer saw them."""
        changes: list[tuple[str | None, str | None]] = []
        counted: list[Move] = []
        champion = None
        for entry in self.entries:
            if not entry.counts:
                changes.append((entry.move.from_version, entry.move.to_version))
                continue
            counted.append(entry.move)
            before, champion = champion, _champion_after(counted)
            changes.append((before, champion))
        return changes

    def entries_of(self, version: str) -> list[Entry]:
        """Return the entries about a version, without those about another one that had its number."""
        return [e for e in self.entries if e.move.version == version and version in self.versions and e.move.is_of(self.versions[version])]

    @property
    def has_begun(self) -> bool:
        """Whether the model has a log of its own, so that a log of an earlier release is not looked for any more."""
        return any(move.run_id is None and move.id != START_PREVIOUS_ID for move in self.moves)

    @property
    def open_moves(self) -> list[Move]:
        """The moves that were begun and not finished."""
        return [entry.move for entry in self.entries if entry.outcome is None]

    @property
    def champion(self) -> str | None:
        """The version under the alias, if it exists."""
        return self._existing_version(CHAMPION)

    @property
    def previous(self) -> str | None:
        """The version under the alias `previous`, if it exists."""
        return self._existing_version(PREVIOUS)

    def _existing_version(self, alias: str) -> str | None:
        number = self.aliases.get(alias)
        return number if number in self.versions else None

    @property
    def logged_champion(self) -> Move | None:
        """The move that made the champion by the log, whether or not its version still exists."""
        stack = stack_after(self.counted_moves())
        return stack[-1] if stack else None

    def counted_moves(self, also: Collection[str] = ()) -> list[Move]:
        """Return the moves that were finished, and those with an id in `also` unless they are marked as interrupted."""
        return [entry.move for entry in self.entries if entry.counts or (entry.outcome is None and entry.move.id in also)]

    def standing(self, also: Collection[str] = ()) -> Standing:
        """Return what the aliases should point to after the counted moves."""
        return standing_after(self.counted_moves(also), self.versions)

    @property
    def is_moved_by_hand(self) -> bool:
        """Whether the alias was moved and no entry says so; of a version that was deleted MLflow removes the alias itself."""
        top = self.logged_champion
        if top is None:
            return self.champion is not None
        if self.champion is None:
            return exists(top, self.versions) and self.counted_moves()[-1].version is not None
        return self.champion != top.version or not top.is_of(self.versions[self.champion])

    def outcomes_of(self, interrupted: Sequence[Move]) -> list[tuple[Move, Outcome]]:
        """Return how changes that were interrupted have ended, by what the alias says: the newest has taken effect or none has."""
        outcomes: list[tuple[Move, Outcome]] = [(move, "interrupted") for move in interrupted]
        if interrupted and self.champion is not None and self.champion == interrupted[-1].to_version != self.standing().champion:
            outcomes[-1] = (interrupted[-1], "done")
        return outcomes

    @property
    def missing_before(self) -> list[Move]:
        """The moves whose writer saw an entry that is not there any more."""
        present = {move.id for move in self.moves}
        return [move for move in self.moves if move.after is not None and move.after not in present]


def _champion_after(moves: Sequence[Move]) -> str | None:
    if moves[-1].action == "by-hand":
        return moves[-1].version
    stack = stack_after(moves)
    return stack[-1].version if stack else None


def _outcome(move: Move, tags: Mapping[str, str]) -> Outcome | None:
    if move.action in ("by-hand", "start") or move.run_id is not None:
        return "done"
    written = tags.get(f"{ENTRY_PREFIX}{move.id}{OUTCOME_SUFFIX}")
    match written:
        case None:
            return None
        case "done" | "interrupted":
            return written
    raise BadInput(
        f"the promotion log has the outcome {written!r} for entry {move.id}, which this release does not know",
        hint=f"delete the tag {ENTRY_PREFIX}{move.id}{OUTCOME_SUFFIX} of the model unless a newer release wrote it",
    )
