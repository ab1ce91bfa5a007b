"""Writes into the promotion log what the aliases of a model say and the log does not: its beginning, and moves that were made by hand.

Promises: only what was read is written, so nothing about the champion changes. Two callers who read the same write the same entries.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace

from components.registry.promotions.log import PromotionLog
from components.registry.promotions.moves import (
    START_ID,
    START_PREVIOUS_ID,
    Action,
    Move,
    Standing,
    VersionIdentity,
    clean_name,
    id_after,
    utc,
)
from components.registry.promotions.old_logs import old_standing
from components.registry.promotions.state import Entry, RegistryState


class PromotionRecords:
    """Entries about what was found; `old_moves` returns the entries of an earlier release about the model that was made at a time."""

    def __init__(self, log: PromotionLog, *, old_moves: Callable[[int], list[Move]], clock: Callable[[], float]) -> None:
        self._log = log
        self._old_moves = old_moves
        self._clock = clock

    def take_over(self, state: RegistryState, by: str) -> bool:
        """Copy the log of an earlier release into the model unless it has one of its own; return whether there was one to copy."""
        old = [] if state.has_begun else self._old_moves(state.created_ms)
        for move in (*old, *self._starts_after(old, state, by)):
            self._log.append(move)
        return bool(old)

    def as_taken_over(self, state: RegistryState) -> RegistryState:
        """Return the state as it would be after `take_over`; nothing is written."""
        old = [] if state.has_begun else self._old_moves(state.created_ms)
        present = {move.id for move in state.moves}  # a copy that was interrupted left some
        moves = [move for move in (*old, *self._starts_after(old, state, "the next promotion")) if move.id not in present]
        return replace(state, entries=(*(Entry(move, "done") for move in moves), *state.entries))

    def _starts_after(self, old: list[Move], state: RegistryState, by: str) -> list[Move]:
        if not old:
            return []
        agreed = old_standing(old, state) == Standing(state.champion, state.previous)
        count = f"{len(old)} {'entry' if len(old) == 1 else 'entries'}"
        return self._starts(state, by, f"{count} of the log of an earlier release taken over", agreed=agreed)

    def begin(self, state: RegistryState, by: str) -> bool:
        """Write where the log begins if the aliases of a model without any point somewhere; return whether it was written."""
        if state.has_begun or state.champion is None:
            return False
        for move in self._starts(state, by, "found when the log began", agreed=False):
            self._log.append(move)
        return True

    def by_hand(self, state: RegistryState, by: str) -> bool:
        """Write that the champion was moved by hand, if it was; return whether it was written."""
        top = state.logged_champion
        if top is None or not state.is_moved_by_hand:
            return False
        newest = state.counted_moves()[-1].id
        champion = state.champion
        entry_id = id_after(newest, f"{zlib.crc32(repr((newest, champion)).encode()):08x}")
        reason = "found under the alias; no entry says who moved it"
        self._log.append(self._observed_move(state, entry_id, "by-hand", champion, by, reason, came_from=top.version, after=newest))
        return True

    def _starts(self, state: RegistryState, by: str, reason: str, *, agreed: bool) -> list[Move]:
        """Return the entries with which a log begins; the one that says that it has begun is the last."""
        entries = [(START_PREVIOUS_ID, state.previous, None), (START_ID, state.champion, state.previous)]
        return [
            self._observed_move(state, entry_id, "start", version, by, reason, came_from=came_from, agreed=agreed)
            for entry_id, version, came_from in entries
            if version is not None or entry_id == START_ID
        ]

    def _observed_move(
        self,
        state: RegistryState,
        entry_id: str,
        action: Action,
        version: str | None,
        by: str,
        reason: str,
        *,
        came_from: str | None = None,
        after: str | None = None,
        agreed: bool = True,
    ) -> Move:
        identity = VersionIdentity(None) if version is None else state.versions[version]
        return Move(
            entry_id,
            action,
            version,
            reason,
            clean_name(by),
            utc(self._clock()),
            checkpoint=identity.checkpoint,
            version_created_ms=identity.created_ms,
            model_created_ms=state.created_ms,
            from_version=came_from,
            to_version=version,
            after=after,
            agreed=agreed,
        )
