"""Where each trial of a sweep stands, for the table, the page and MLflow alike."""

from dataclasses import dataclass

from pipeline.sweeps.coordinator import schedule_of
from pipeline.sweeps.halving import current_rung, members_of
from pipeline.sweeps.ranking import Score, rank
from pipeline.sweeps.records import Failed, Piece, Scored, SweepState
from pipeline.sweeps.space import Values
from pipeline.sweeps.sweep_file import Sweep

STOPPED = "stopped"
"""The status of a trial that does not train on in this sweep."""


@dataclass(frozen=True)
class Standing:
    """One trial."""

    trial: int
    values: Values
    scores: dict[int, Score]
    """Rung -> score, of the rungs that are measured with every seed."""
    status: str
    """`winner`, `kept`, `stopped`, `failed`, `measured`, `running`, `interrupted` or `waiting`."""
    reason: str
    """Of the newest decision or failure."""
    seconds: float
    """Device seconds so far."""

    @property
    def newest(self) -> Score | None:
        """The score on the last rung that it reached."""
        return self.scores[max(self.scores)] if self.scores else None


def standings(sweep: Sweep, state: SweepState, *, is_over: bool = False) -> list[Standing]:
    """Return all trials that have settings, the best first: those that came further, then those with better scores.

    A trial that would run is interrupted if the command `is_over`; its runs on a cluster may go on.
    """
    config = sweep.config
    by_rung = {
        steps: {score.trial: score for score in rank(state, state.asked, steps=steps, seeds=config.seeds, goal=config.goal)}
        for steps in config.rungs
    }
    entries = []
    for trial, asked in state.asked.items():
        scores = {steps: ranked[trial] for steps, ranked in by_rung.items() if trial in ranked}
        status, reason = _status(sweep, state, trial)
        status = "interrupted" if is_over and status == "running" else status
        ended: list[Scored | Failed] = [*state.scored.values(), *state.failed.values()]
        seconds = sum(record.device_s for record in ended if record.piece.trial == trial)
        entries.append(Standing(trial, dict(asked.values), scores, status, reason, seconds))
    sign = 1 if config.goal == "minimize" else -1

    def place(entry: Standing) -> tuple[int, float, int]:
        newest = entry.newest
        return (-max(entry.scores, default=0), float("inf") if newest is None else sign * newest.mean, entry.trial)

    return sorted(entries, key=place)


def _status(sweep: Sweep, state: SweepState, trial: int) -> tuple[str, str]:
    if state.finished is not None and state.finished.trial == trial:
        return "winner", f"final run: gate {state.finished.gate}"
    schedule = schedule_of(sweep)
    reason = ""
    for steps in sweep.config.rungs:
        decision = state.decided.get(steps)
        if decision is not None and trial in decision.reasons:
            reason = decision.reasons[trial]
            if trial not in decision.kept:
                return STOPPED, reason
    rung = current_rung(schedule, state)
    if rung is None:
        return "winner", reason
    steps = schedule.rungs[rung]
    pieces = [Piece(steps, trial, seed) for seed in schedule.seeds]
    failure = next((state.failed[piece] for piece in pieces if piece in state.failed), None)
    if failure is not None:
        return "failed", failure.message
    if trial in members_of(schedule, state, rung) and any(piece in state.started or piece in state.scored for piece in pieces):
        return ("measured" if all(piece in state.scored for piece in pieces) else "running"), reason
    return ("kept" if reason else "waiting"), reason
