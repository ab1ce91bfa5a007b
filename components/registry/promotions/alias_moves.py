"""Points the aliases of a model to what follows from its log, for a change that is open.

Promises: if MLflow refuses a part, the aliases and the log are as they were before.
"""

from components.errors import BadInput, CelebditError, TemporaryFailure, TrackingRefused, first_line
from components.registry.aliases import settle_aliases
from components.registry.promotions.log import PromotionLog, is_forbidden
from components.registry.promotions.moves import Move, Standing
from components.registry.promotions.problems import describe
from components.registry.promotions.state import RegistryState
from components.tracking.database_conflicts import is_database_conflict


class AliasMoves:
    """What one change does to the aliases of the model that was read as `state`, after its entry was written."""

    def __init__(self, log: PromotionLog, state: RegistryState, move: Move) -> None:
        self._log = log
        self._state = state
        self._move = move
        self._moved: list[tuple[str, str | None, str | None]] = []

    def settle(self) -> Standing:
        """Move the aliases until they follow from the log, and return the standing.

        Raises:
            BadInput: if MLflow refuses it; the change was undone. TemporaryFailure: if the change stays open.
        """
        try:
            return settle_aliases(self._state.model, standing=self._standing, aliases=lambda: self._state.aliases, move=self._move_alias)
        except BadInput:
            self._undo()
            raise

    def _standing(self) -> Standing:
        """Read the model and return what follows from the finished changes and the open ones, of which none is older than this."""
        state = self._log.read()
        if state is None or state.created_ms != self._state.created_ms:
            raise BadInput(f"the registered model {self._log.name!r} was deleted meanwhile", hint="nothing was promoted; run it again")
        opened = {move.id for move in state.open_moves}
        if self._move.id not in opened:
            raise TemporaryFailure(
                f"another command took {describe(self._move)} for interrupted, because it made no progress",
                hint=f"celebdit models history --model {state.model} shows what is champion; run it again",
            )
        self._state = state
        standing = state.standing(opened)
        if standing.champion is None:
            raise BadInput("the version that is to be champion was deleted meanwhile", hint="nothing was changed; promote another version")
        return standing

    def _move_alias(self, alias: str, version: str | None) -> None:
        try:
            self._log.move_alias(alias, version)
        except TrackingRefused as error:
            if is_database_conflict(error.__cause__):
                raise
            raise BadInput(f"{error.message}; nothing was changed", hint=error.hint) from error
        except BadInput as error:
            if not is_forbidden(error):
                raise
            action, right = ("remove", "MANAGE") if version is None else ("move", "EDIT")
            raise BadInput(
                f"MLflow does not allow this user to {action} the alias {alias!r} of {self._log.name!r}; nothing was changed",
                hint=f"ask its owner for the permission {right} on the registered model",
            ) from error
        self._moved.append((alias, self._state.aliases.get(alias), version))

    def _undo(self) -> None:
        """Put the aliases back that still are where this change put them, and remove its entry."""
        try:
            state = self._log.read()
            if state is None:
                return  # the model is gone, and its log with it
            for alias, before, after in reversed(self._moved):
                if state.created_ms == self._state.created_ms and state.aliases.get(alias) == after:
                    self._log.move_alias(alias, before)
            self._log.retract(self._move)
        except CelebditError as error:
            raise TemporaryFailure(
                f"{describe(self._move)} was refused and could not be undone: {first_line(error)}",
                hint=f"celebdit models history --model {self._log.name} says what it left",
            ) from error
