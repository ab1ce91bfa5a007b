"""What a sweep does next: synchronous successive halving, as a pure function of its records.

All trials train to the first rung; of a rung's trials the best go on, each from its own checkpoint, so that the next rung costs only the
difference. A rung is decided when all its trials have ended, or when `min_finished` of them have and the others failed or take more than
`SLOW` times as long as the slowest that has ended. A budget ends a sweep before work that is not expected to fit.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.sweeps.ranking import Goal, Score, comparison, rank
from pipeline.sweeps.records import Failed, Piece, SweepState

SLOW = 2.0
MOST_TRIES = 3
"""Starts of a run in one invocation, if it fails for a reason that may pass."""
_TEMPORARY = 75
_BAD_INPUT = 2


@dataclass(frozen=True)
class Schedule:
    """The fixed part of a sweep."""

    num_trials: int
    seeds: tuple[int, ...]
    rungs: tuple[int, ...]
    keep_one_in: int
    min_finished: float
    goal: Goal
    budget_s: float | None = None
    final_steps: int | None = None


@dataclass(frozen=True)
class Now:
    """What is not in the records: the runs of this invocation, and the time."""

    running: Collection[Piece] = ()
    tries: Mapping[Piece, int] | None = None
    """Failed starts of this invocation."""
    free: int = 1
    """Runs that can still be started."""
    at_s: float = 0.0


@dataclass(frozen=True)
class Ask:
    """Choose the settings of a trial."""

    trial: int


@dataclass(frozen=True)
class Start:
    """Start a run."""

    piece: Piece


@dataclass(frozen=True)
class Wait:
    """Wait for a run to end."""


@dataclass(frozen=True)
class Decide:
    """Record which trials of a rung go on."""

    steps: int
    kept: tuple[int, ...]
    reasons: dict[int, str]


@dataclass(frozen=True)
class Finish:
    """Make the final run of the winner."""

    trial: int


@dataclass(frozen=True)
class Stop:
    """End without a final run: the budget does not hold more, or a failure needs a person."""

    reason: str
    failure: Failed | None = None


@dataclass(frozen=True)
class Done:
    """Everything is recorded."""


Action = Ask | Start | Wait | Decide | Finish | Stop | Done


def next_action(schedule: Schedule, state: SweepState, now: Now) -> Action:
    """Return what to do next."""
    rung = current_rung(schedule, state)
    if rung is None or state.finished is not None:
        return _end(schedule, state)
    steps = schedule.rungs[rung]
    members = members_of(schedule, state, rung)
    if (failure := _fatal(state, now)) is not None:
        return Wait() if now.running else Stop(f"trial {failure.piece.trial}: {failure.message}", failure)
    pieces = [Piece(steps, trial, seed) for trial in members for seed in schedule.seeds]
    waiting = [piece for piece in pieces if piece not in now.running and _is_open(state, now, piece)]
    if waiting and now.free > 0:
        if not fits_budget(schedule, state, steps=steps, rung=rung, num_running=len(now.running)):
            return Wait() if now.running else Stop(_budget_text(schedule, state))
        return Start(waiting[0]) if waiting[0].trial in state.asked else Ask(waiting[0].trial)
    if now.running and not (not waiting and _are_slow(schedule, state, now, pieces)):
        return Wait()
    return _decide(schedule, state, now, rung, members)


def current_rung(schedule: Schedule, state: SweepState) -> int | None:
    """Return the index of the first rung that is not decided; None if all are."""
    return next((index for index, steps in enumerate(schedule.rungs) if steps not in state.decided), None)


def members_of(schedule: Schedule, state: SweepState, rung: int) -> tuple[int, ...]:
    """Return the trials of a rung, in the order in which they are run."""
    return tuple(range(schedule.num_trials)) if rung == 0 else state.decided[schedule.rungs[rung - 1]].kept


def num_kept(schedule: Schedule, rung: int, num_members: int) -> int:
    """Return how many trials of a rung go on."""
    return 1 if rung == len(schedule.rungs) - 1 else max(1, num_members // schedule.keep_one_in)


def _end(schedule: Schedule, state: SweepState) -> Action:
    if state.finished is not None:
        return Done()
    winner = state.decided[schedule.rungs[-1]].kept[0]
    longer = (schedule.final_steps or schedule.rungs[-1]) - schedule.rungs[-1]
    if schedule.budget_s is not None and state.device_s + longer * _device_s_per_step(schedule, state) > schedule.budget_s:
        return Stop(_budget_text(schedule, state))
    return Finish(winner)


def _fatal(state: SweepState, now: Now) -> Failed | None:
    """Return a failure of this invocation that other trials would share: bad input is that of the sweep, not of one trial."""
    failures = [state.failed[piece] for piece in now.tries or {} if piece in state.failed]
    return next((failure for failure in failures if failure.exit_code == _BAD_INPUT), None)


def _is_open(state: SweepState, now: Now, piece: Piece) -> bool:
    """Return whether `piece` has no outcome yet, and may be started in this invocation."""
    if state.has_ended_for_good(piece):
        return False
    tries = (now.tries or {}).get(piece, 0)
    failure = state.failed.get(piece)
    return tries == 0 or (failure is not None and failure.exit_code == _TEMPORARY and tries < MOST_TRIES)


def fits_budget(schedule: Schedule, state: SweepState, *, steps: int, rung: int, num_running: int) -> bool:
    """Return whether one more run on a rung is expected to end within the budget; the first is always tried."""
    if schedule.budget_s is None:
        return True
    trained = steps - (schedule.rungs[rung - 1] if rung else 0)
    expected = (num_running + 1) * trained * _device_s_per_step(schedule, state)
    return state.device_s + expected <= schedule.budget_s


def _device_s_per_step(schedule: Schedule, state: SweepState) -> float:
    """Return the device seconds of a training step so far, evaluation included."""
    before = {steps: earlier for earlier, steps in zip((0, *schedule.rungs), schedule.rungs, strict=False)}
    measured = [record for record in state.scored.values() if record.device_s > 0]
    trained = sum(record.piece.steps - before[record.piece.steps] for record in measured)
    return sum(record.device_s for record in measured) / trained if trained else 0.0


def _budget_text(schedule: Schedule, state: SweepState) -> str:
    budget = schedule.budget_s or 0.0
    return f"the budget of {budget / 3600:.3g} device hours does not hold the next run: {state.device_s / 3600:.3g} are spent"


def _are_slow(schedule: Schedule, state: SweepState, now: Now, pieces: list[Piece]) -> bool:
    """Return whether enough trials have ended, and every run that has not takes much longer than they did."""
    durations = [
        state.scored[piece].at_s - state.started[piece].at_s for piece in pieces if piece in state.scored and piece in state.started
    ]
    ended = [trial for trial in {piece.trial for piece in pieces} if _has_ended(schedule, state, trial, pieces[0].steps)]
    if not durations or len(ended) < _least(schedule, len(pieces) // len(schedule.seeds)):
        return False
    started = [state.started[piece].at_s for piece in now.running if piece in state.started]
    return bool(started) and all(now.at_s - at_s > SLOW * max(durations) for at_s in started)


def _has_ended(schedule: Schedule, state: SweepState, trial: int, steps: int) -> bool:
    return all(state.has_ended_for_good(Piece(steps, trial, seed)) for seed in schedule.seeds)


def _least(schedule: Schedule, num_members: int) -> int:
    """Return how many trials of a rung must have ended before it is decided."""
    return math.ceil(schedule.min_finished * num_members - 1e-9)


def _decide(schedule: Schedule, state: SweepState, now: Now, rung: int, members: tuple[int, ...]) -> Action:
    steps = schedule.rungs[rung]
    ranked = rank(state, members, steps=steps, seeds=schedule.seeds, goal=schedule.goal)
    ended = [trial for trial in members if _has_ended(schedule, state, trial, steps)]
    failures = [state.failed[piece] for piece in sorted(state.failed) if piece.steps == steps and piece.trial in members]
    if not ranked or len(ended) < _least(schedule, len(members)):
        failure = failures[0] if failures else None
        text = f"{len(ranked)} of {len(members)} trials have a score at step {steps}"
        return Stop(text if failure is None else f"{text}; trial {failure.piece.trial}: {failure.message}", failure)
    kept = ranked[: num_kept(schedule, rung, len(members))]
    reasons = {score.trial: _place(number, score, ranked, len(kept)) for number, score in enumerate(ranked, start=1)}
    for trial in members:
        if trial not in reasons:
            failure = next((failure for failure in failures if failure.piece.trial == trial), None)
            reasons[trial] = "stopped: it took too long" if failure is None else f"stopped: {failure.message}"
    return Decide(steps, tuple(score.trial for score in kept), reasons)


def _place(number: int, score: Score, ranked: list[Score], num_kept: int) -> str:
    """Return in words why a trial goes on, or does not."""
    if number <= num_kept:
        rivals = [other for other in ranked if other is not score and score.overlaps(other)]
        shared = f"; no difference shown to {_trials(rivals)}" if rivals else ""
        return f"kept: place {number} of {len(ranked)} with {score.text()}{shared}"
    return f"stopped: place {number} of {len(ranked)} with {score.text()}, {comparison(score, ranked[num_kept - 1])}"


def _trials(scores: list[Score]) -> str:
    numbers = ", ".join(str(score.trial) for score in scores[:5])
    return f"trial{'s' if len(scores) > 1 else ''} {numbers}" + (" and others" if len(scores) > 5 else "")
