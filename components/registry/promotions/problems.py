"""Where the aliases of a registered model and its promotion log disagree, and what to type.

Promises: nothing is guessed: every problem names what the alias says, what the log says, and the command that makes either of them true.
"""

from dataclasses import dataclass

from components.registry.promotions.moves import Move, exists, stack_after
from components.registry.promotions.state import RegistryState
from components.reports.listing import list_some


@dataclass(frozen=True)
class Problem:
    """A disagreement, and the commands of which one settles it."""

    text: str
    commands: tuple[str, ...]
    by_hand: bool = False
    """Whether the champion was moved and no command of this project did it."""

    def hint(self, model: str) -> str:
        """Return what to type; `model` is the name of the registered model."""
        if self.commands:
            return "type: " + "  or: ".join(self.commands)
        return f"celebdit models list --model {model} shows which version can be promoted"


def problems_of(state: RegistryState) -> list[Problem]:
    """Return what forbids to go back to the previous champion: without any, aliases and log agree."""
    if state.open_moves:
        return [_open(state, move) for move in state.open_moves]
    problem = _champion_problem(state) or _previous_problem(state) or _start_problem(state)
    return [] if problem is None else [problem]


def warnings_of(state: RegistryState) -> list[str]:
    """Return what is odd about the log and forbids nothing."""
    gaps = [f"an entry of the log before {move.at} is missing: the tag of {move.after} was deleted" for move in state.missing_before]
    if state.foreign:
        gaps.append(f"tags that are no entries of this model's log are ignored: {list_some(state.foreign, most=5)}")
    return gaps


def promote_command(state: RegistryState, version: str) -> str:
    """Return the command that promotes a version."""
    return f'celebdit models promote {version} --model {state.model} --reason "..."'


def describe(move: Move) -> str:
    """Return what was to happen, by whom and when."""
    return f"the {'rollback' if move.action == 'rollback' else 'promotion'} of version {move.version} by {move.by} at {move.at}"


def _commands(state: RegistryState, *versions: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(promote_command(state, version) for version in versions if version is not None))


def _open(state: RegistryState, move: Move) -> Problem:
    place = f"champion is {_version_text(state.champion)}"
    return Problem(
        f"{describe(move)} was begun and is not finished: it is in progress or was interrupted; {place}",
        _commands(state, move.to_version if move.to_version in state.versions else None, state.champion),
    )


def _champion_problem(state: RegistryState) -> Problem | None:
    logged, champion = state.logged_champion, state.champion
    if logged is None:
        text = f"champion is version {champion} and no entry of the promotion log says so: it was set by hand, or the log was deleted"
        return None if champion is None else Problem(text, _commands(state, champion), by_hand=True)
    if not exists(logged, state.versions):
        return _deleted_champion_problem(state, logged)
    if champion == logged.version:
        return None
    now = "the alias champion was removed" if champion is None else f"champion is version {champion}, moved"
    text = f"{now} by hand; by the log it is version {logged.version} since {logged.at}"
    return Problem(text, _commands(state, champion, logged.version), by_hand=True)


def _deleted_champion_problem(state: RegistryState, logged: Move) -> Problem:
    """Return the problem of a champion whose version is gone, or whose number another checkpoint has."""
    champion, previous = state.champion, state.standing().previous
    if champion is None:
        return Problem(f"version {logged.version}, the champion by the log, was deleted: there is no champion", _commands(state, previous))
    if champion == logged.version:
        text = f"champion is version {champion}, whose checkpoint is not the one that was promoted at {logged.at}"
        return Problem(text, _commands(state, champion, previous), by_hand=True)
    text = f"champion is version {champion}, moved by hand; by the log it was version {logged.version}, which was deleted"
    return Problem(text, _commands(state, champion), by_hand=True)


def _previous_problem(state: RegistryState) -> Problem | None:
    expected, previous = state.standing().previous, state.previous
    if previous == expected:
        return None
    deleted = next((m.version for m in reversed(stack_after(state.counted_moves())[:-1]) if not exists(m, state.versions)), None)
    if previous is None and deleted is not None:
        text = f"version {deleted}, the champion before, was deleted; the one before it is {_version_text(expected)}"
    else:
        text = f"previous is {_version_text(previous)}, moved by hand; by the log it is {_version_text(expected)}"
    return Problem(text, _commands(state, expected, previous))


def _start_problem(state: RegistryState) -> Problem | None:
    """Return the problem of a log that was taken over from one that said something else, until the next promotion."""
    moves = state.counted_moves()
    if not moves or moves[-1].action != "start" or moves[-1].agreed:
        return None
    text = f"the log of an earlier release did not say that version {state.champion} is the champion"
    return Problem(text, _commands(state, state.champion, state.previous))


def _version_text(version: str | None) -> str:
    return "not set" if version is None else f"version {version}"
