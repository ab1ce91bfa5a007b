"""Makes promotions and rollbacks of a registered model.

MLflow has neither transactions nor conditional writes, so a change is a sequence of single writes to the registered model:

1. Wait until no other promoter's change is open that was open at first. One of a model where nothing changes for `QUIET_S` is interrupted.
2. Write the entry. It names what is to happen and has no outcome yet: the change is open. Ids of entries sort after all that the writer
   has read, whatever its clock says.
3. Point `previous` and then `champion` to what follows from the finished entries and those that were begun since, in the order of their
   ids, and read again until they do. All who are in this step do the same, so all end with the same aliases.
4. Write the outcome `done`.

Promises: of concurrent changes none is lost, and the aliases end as after the same changes one by one. A change that MLflow refuses is
undone: it leaves neither entry nor alias. A change that was killed stays open, and every command says so. The next promotion marks it by
what the alias says: `done` if the champion is the version that it names, else `interrupted`; an interrupted change counts for nothing. A
rollback is refused while a change is open or aliases and log disagree.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from components.errors import BadInput
from components.registry.promotions.alias_moves import AliasMoves
from components.registry.promotions.log import PromotionLog, is_forbidden
from components.registry.promotions.moves import Move, Standing, VersionIdentity, clean_name, new_id, utc
from components.registry.promotions.problems import describe, problems_of
from components.registry.promotions.records import PromotionRecords
from components.registry.promotions.state import RegistryState

QUIET_S = 10.0
"""How long nothing about a model changes before another promoter's open change counts as interrupted."""
_POLL_S = 0.2
_CERTAINLY_OLD_S = 3600.0
_MOST_READINGS = 10


class PromotionChanges:
    """Changes of the champion of one registered model; `note` gets what a person should know besides the outcome."""

    def __init__(
        self,
        log: PromotionLog,
        *,
        old_moves: Callable[[int], list[Move]],
        note: Callable[[str], None],
        quiet_s: float = QUIET_S,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._log = log
        self._records = PromotionRecords(log, old_moves=old_moves, clock=clock)
        self._note = note
        self._quiet_s = quiet_s
        self._clock = clock
        self._sleep = sleep

    def promote(self, version: str, identity: VersionIdentity, *, reason: str, by: str, forced: bool) -> Standing:
        """Make `version`, which must be the one with `identity`, the champion and return the standing; disagreements are recorded before.

        Raises:
            BadInput: if MLflow refuses it; nothing has changed then. TemporaryFailure: if it cannot be known whether something has.
        """
        state, interrupted = self._quiet_state()
        if state.versions.get(version) != identity:
            raise BadInput(f"version {version} of {state.model!r} is not the one that was looked at any more", hint="run it again")
        state = self._record_interrupted(state, interrupted, by)
        return self._make(state, "promote", version, to=version, reason=reason, by=by, forced=forced)

    def rollback(self, *, reason: str, by: str) -> Standing:
        """Make the previous champion the champion and return the standing.

        Raises:
            BadInput: if there is no earlier champion, aliases and log disagree, or MLflow refuses it; nothing has changed then.
        """
        state, interrupted = self._quiet_state()
        while state.open_moves and not interrupted:  # which version is rolled back depends on what they end with
            state, interrupted = self._quiet_state()
        with self._refusals():
            state = self.take_over_log(self.stable(state), by)
        for problem in problems_of(state):
            raise BadInput(f"{problem.text}; nothing was rolled back", hint=problem.hint(state.model))
        standing = state.standing()
        if standing.champion is None or standing.previous is None:
            raise BadInput(
                f"model {state.model!r} has no earlier champion to roll back to",
                hint=f"celebdit models history --model {state.model} lists every promotion",
            )
        return self._make(state, "rollback", standing.champion, to=standing.previous, reason=reason, by=by)

    def take_over_log(self, state: RegistryState, by: str) -> RegistryState:
        """Copy the log of an earlier release, if the model has none of its own, into the model; return the state after that."""
        return self._read(state) if self._records.take_over(state, by) else state

    def state_for_reader(self, *, take_over_as: str | None) -> RegistryState | None:
        """Return the state for a reader; None if there is no such model.

        With the name of a person, the log of an earlier release is copied into the model, if that person may change it.
        """
        state = self._log.read()
        if state is None:
            return None
        if take_over_as is not None:
            try:
                return self.stable(self.take_over_log(state, take_over_as))
            except BadInput as error:
                if not is_forbidden(error):
                    raise
        return self._records.as_taken_over(self.stable(state))

    def stable(self, state: RegistryState) -> RegistryState:
        """Return `state`, or what it changes to if it has a problem: MLflow reads tags and aliases one after the other."""
        for _ in range(_MOST_READINGS):
            if not problems_of(state):
                return state
            self._sleep(_POLL_S)
            latest = self._read(state)
            if latest == state:
                return state
            state = latest
        return state

    def _quiet_state(self) -> tuple[RegistryState, list[Move]]:
        """Return the state after the changes that were open at first, and those of them that were interrupted."""
        first = state = self._read(None)
        opened = {move.id for move in first.open_moves}
        waited_for = {move.id for move in first.open_moves if not self._is_certainly_old(move)}
        if waited_for:
            self._note(f"waiting for {describe(first.open_moves[-1])}, which is not finished")
        left_s = self._quiet_s
        while left_s > 0 and any(move.id in waited_for for move in state.open_moves):
            self._sleep(_POLL_S)
            latest = self._read(first)
            left_s = left_s - _POLL_S if latest == state else self._quiet_s
            state = latest
        return state, [move for move in state.open_moves if move.id in opened]

    def _is_certainly_old(self, move: Move) -> bool:
        return int(move.id.split("-")[0]) / 1000 < self._clock() - _CERTAINLY_OLD_S

    def _read(self, before: RegistryState | None) -> RegistryState:
        state = self._log.read()
        if state is None or (before is not None and state.created_ms != before.created_ms):
            raise BadInput(
                f"the registered model {self._log.name!r} does not exist{' any more' if before else ''}",
                hint="celebdit models list --model NAME shows what a model has",
            )
        return state

    def _record_interrupted(self, state: RegistryState, interrupted: Sequence[Move], by: str) -> RegistryState:
        """Write into the log how interrupted changes ended and what else the aliases say, and return the state after that."""
        for move, outcome in state.outcomes_of(interrupted):
            self._note(f"{describe(move)} was interrupted; it is recorded as {outcome}, by what the alias champion points to")
            with self._refusals():
                self._log.finish(move, outcome)
        if interrupted:
            state = self._read(state)
        if state.open_moves:
            return state  # others are about to move the aliases, so nothing can be said about them
        state = self.stable(state)
        if state.open_moves:
            return state
        for problem in problems_of(state):
            self._note(f"{problem.text}; this is recorded in the log" if problem.by_hand else problem.text)
        with self._refusals():
            written = self._records.take_over(state, by) or self._records.begin(state, by) or self._records.by_hand(state, by)
        return self._read(state) if written else state

    def _make(
        self,
        state: RegistryState,
        action: Literal["promote", "rollback"],
        version: str,
        *,
        to: str,
        reason: str,
        by: str,
        forced: bool = False,
    ) -> Standing:
        if version not in state.versions:
            raise BadInput(
                f"version {version} of {state.model!r} was deleted meanwhile",
                hint=f"celebdit models list --model {state.model} shows what there is",
            )
        now_s, identity, finished = self._clock(), state.versions[version], state.counted_moves()
        move = Move(
            new_id(state.moves, now_s),
            action,
            version,
            reason,
            clean_name(by),
            utc(now_s),
            forced=forced,
            checkpoint=identity.checkpoint,
            version_created_ms=identity.created_ms,
            model_created_ms=state.created_ms,
            from_version=state.champion,
            to_version=to,
            after=finished[-1].id if finished else None,
        )
        with self._refusals():
            self._log.append(move)
        standing = AliasMoves(self._log, state, move).settle()
        self._log.finish(move, "done")
        if standing.champion != to:
            self._note(
                f"a concurrent change made version {standing.champion} the champion; see celebdit models history --model {state.model}"
            )
        return standing

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except BadInput as error:
            if not is_forbidden(error):
                raise
            raise BadInput(
                f"MLflow does not allow this user to change the registered model {self._log.name!r}; nothing was changed",
                hint="ask its owner for the permission EDIT on the registered model; a right on the experiment is not enough",
            ) from error
