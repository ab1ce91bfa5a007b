"""The loop of a sweep: take the next action, and record what came of it.

Promises: everything that it knows is in the journal, so that it can be killed anywhere and run again; the same loop drives runs on this
machine and on Kubeflow Pipelines.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from components.errors import CelebditError, Failure
from components.manifests import EvaluationReport
from pipeline.config import RunConfig
from pipeline.sweeps.halving import Ask, Decide, Done, Finish, Now, Schedule, Start, Stop, Wait, next_action
from pipeline.sweeps.journal import Journal
from pipeline.sweeps.proposals import propose
from pipeline.sweeps.records import Asked, Decided, Failed, Finished, Piece, Record, Scored, Started, SweepState
from pipeline.sweeps.sweep_file import Sweep


@dataclass(frozen=True)
class TrialOutcome:
    """What came of a run: a report or a failure."""

    piece: Piece
    run_id: str
    report: EvaluationReport | None
    failure: CelebditError | None
    device_s: float


class TrialRunner(Protocol):
    """Runs trials somewhere."""

    @property
    def free(self) -> int:
        """Runs that can be started now."""

    def start(self, piece: Piece, config: RunConfig) -> str:
        """Start a run, or find the one that was started for the same configuration, and return its id."""

    def wait(self) -> TrialOutcome | None:
        """Wait for a run to end, or for a while."""

    def finish(self, trial: int, config: RunConfig) -> Finished:
        """Make the final run of a winner and wait for its end.

        Raises:
            CelebditError: if it fails; a gate that does not pass is an outcome.
        """


@dataclass
class Coordinator:
    """One sweep, and what it needs."""

    sweep: Sweep
    journal: Journal
    runner: TrialRunner
    find_stored: Callable[[RunConfig], EvaluationReport | None]
    on_record: Callable[[SweepState, Record], None] = lambda state, record: None
    clock: Callable[[], float] = time.time

    def run(self, state: SweepState) -> Stop | Done:
        """Go on from `state`, which the journal's records add up to, until nothing is left to do."""
        self._state, self._running, self._tries = state, set[Piece](), Counter[Piece]()
        schedule = schedule_of(self.sweep)
        while True:
            now = Now(running=self._running, tries=self._tries, free=self.runner.free, at_s=self.clock())
            match next_action(schedule, state, now):
                case Ask(trial):
                    self._ask(trial)
                case Start(piece):
                    self._start(piece)
                case Wait():
                    self._wait()
                case Decide(steps, kept, reasons):
                    self._record(Decided(at_s=self.clock(), steps=steps, kept=kept, reasons=reasons))
                    self._running.clear()
                case Finish(trial):
                    self._record(self.runner.finish(trial, self.sweep.final(state.values(trial))))
                case (Stop() | Done()) as end:
                    return end

    def _record(self, record: Record) -> None:
        self.journal.append(record)
        self._state.add(record)
        self.on_record(self._state, record)

    def _ask(self, trial: int) -> None:
        proposal = propose(self.sweep, trial, self._state)
        self._record(
            Asked(
                at_s=self.clock(),
                trial=trial,
                values=proposal.values,
                sampler=proposal.sampler,
                sampler_version=proposal.sampler_version,
                history=proposal.history,
            )
        )

    def _start(self, piece: Piece) -> None:
        config = self.sweep.trial(self._state.values(piece.trial), seed=piece.seed, steps=piece.steps)
        report = self.find_stored(config)
        if report is not None:
            self._record(self._score_record(TrialOutcome(piece, "", report, None, 0.0), report))
            return
        run_id = self.runner.start(piece, config)
        self._running.add(piece)
        self._record(Started(at_s=self.clock(), piece=piece, run_id=run_id))

    def _wait(self) -> None:
        outcome = self.runner.wait()
        if outcome is None or outcome.piece not in self._running:  # of a trial that was too slow for its rung
            return
        self._running.discard(outcome.piece)
        if outcome.report is not None:
            self._record(self._score_record(outcome, outcome.report))
            return
        failure = Failure.of(outcome.failure or CelebditError("it has no report"))
        self._tries[outcome.piece] += 1
        self._record(
            Failed(
                at_s=self.clock(),
                piece=outcome.piece,
                run_id=outcome.run_id,
                exit_code=failure.exit_code,
                message=failure.message[:1000],
                device_s=outcome.device_s,
            )
        )

    def _score_record(self, outcome: TrialOutcome, report: EvaluationReport) -> Scored:
        interval = report.intervals.get(self.sweep.metric)
        return Scored(
            at_s=self.clock(),
            piece=outcome.piece,
            run_id=outcome.run_id or None,
            run_key=report.run_key,
            value=report.metrics[self.sweep.metric],
            low=None if interval is None else interval.low,
            high=None if interval is None else interval.high,
            device_s=outcome.device_s,
            grid_uri=report.grid_uri,
        )


def schedule_of(sweep: Sweep) -> Schedule:
    """Return the part of a sweep that decides what to do next."""
    config = sweep.config
    budget_h = config.budget_device_hours
    return Schedule(
        num_trials=sweep.num_trials,
        seeds=config.seeds,
        rungs=config.rungs,
        keep_one_in=config.keep_one_in,
        min_finished=config.min_finished,
        goal=config.goal,
        budget_s=None if budget_h is None else budget_h * 3600,
        final_steps=config.final_steps,
    )
