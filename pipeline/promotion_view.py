"""Shows the promotion log of a model: as lines for people and as JSON.

Promises: a move that was made by hand is shown as such, also if it is not in the log yet; texts cannot send control sequences.
"""

from typing import Any

from components.registry.promotions.moves import Move
from components.registry.promotions.problems import problems_of, warnings_of
from components.registry.promotions.state import Entry, RegistryState
from pipeline.view import printable

_LABELS = {"by-hand": "by hand"}
_WIDTH = 8


def history_lines(state: RegistryState) -> list[str]:
    """Return a line per move, oldest first."""
    lines = [_line(entry, *change) for entry, change in zip(state.entries, state.changes(), strict=True) if _is_shown(state, entry.move)]
    if (change := _unrecorded_change(state)) is not None:
        where = f"{'not in the log':<20}  {'by hand':<{_WIDTH}}  {_version(state.champion)}"
        lines.append(f"{where}  {_change(*change)}set in MLflow by hand, or the log was deleted")
    return lines


def problem_lines(state: RegistryState) -> list[str]:
    """Return what aliases and log disagree about, with what to type, and what is odd."""
    problems = [
        line for problem in problems_of(state) for line in (f"aliases and log disagree: {problem.text}", f"  {problem.hint(state.model)}")
    ]
    return [printable(line) for line in (*problems, *warnings_of(state))]


def history_json(state: RegistryState) -> dict[str, Any]:
    """Return the log, with a move by hand that is not in it yet as its last entry, and what aliases and log disagree about."""
    moves = [
        {**move_json(entry), "from": before, "to": after}
        for entry, (before, after) in zip(state.entries, state.changes(), strict=True)
        if _is_shown(state, entry.move)
    ]
    if (change := _unrecorded_change(state)) is not None:
        nothing = dict.fromkeys(("id", "by", "at", "reason", "outcome"))
        moves.append({**nothing, "action": "by-hand", "version": state.champion, "from": change[0], "to": change[1]})
    return {"moves": moves, **problems_json(state)}


def problems_json(state: RegistryState | None) -> dict[str, Any]:
    """Return what aliases and log disagree about, with the commands of which one settles it."""
    problems = [] if state is None else problems_of(state)
    return {
        "problems": [{"problem": problem.text, "commands": list(problem.commands), "by_hand": problem.by_hand} for problem in problems],
        "warnings": [] if state is None else warnings_of(state),
    }


def move_json(entry: Entry) -> dict[str, Any]:
    """Return an entry with its outcome: `done`, `interrupted`, or None while it is open."""
    move = entry.move
    facts = {key: value for key, value in vars(move).items() if key not in ("from_version", "to_version", "run_id", "agreed")}
    return {**facts, "from": move.from_version, "to": move.to_version, "taken_over_from": move.run_id, "outcome": entry.outcome}


def _unrecorded_change(state: RegistryState) -> tuple[str | None, str | None] | None:
    """Return the champion by the log and by the alias if it was moved by hand and no entry says so yet."""
    if not any(problem.by_hand for problem in problems_of(state)):
        return None
    top = state.logged_champion
    return (None if top is None else top.version), state.champion


def _is_shown(state: RegistryState, move: Move) -> bool:
    """Return whether a reader wants to see it: a log that began with nothing has nothing to say about that."""
    return move.action != "start" or move.version is not None or any(other.run_id for other in state.moves)


def _line(entry: Entry, before: str | None, after: str | None) -> str:
    move = entry.move
    marks = [mark for mark, holds in (("forced", move.forced), (_ending(entry), _ending(entry) is not None)) if holds]
    marked = f" ({'; '.join(str(mark) for mark in marks)})" if marks else ""
    action = _LABELS.get(move.action, move.action)
    who = f"by {move.by}" if move.action in ("promote", "rollback") else f"recorded by {move.by}"
    return printable(f"{move.at}  {action:<{_WIDTH}}  {_version(move.version)}  {_change(before, after)}{who}{marked}: {move.reason}")


def _ending(entry: Entry) -> str | None:
    if entry.move.run_id is not None:
        return f"log of an earlier release, MLflow run {entry.move.run_id[:8]}"
    return {None: "begun, not finished", "interrupted": "interrupted, without effect", "done": None}[entry.outcome]


def _version(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"


def _change(before: str | None, after: str | None) -> str:
    return "" if before == after else f"champion {before or 'none'} -> {after or 'none'}  "
