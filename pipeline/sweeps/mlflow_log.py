"""A sweep in MLflow: an experiment `sweep/NAME` with a parent run, and a child per trial.

Promises: what is logged follows from the records, so that logging again after a kill or an outage adds what is missing and nothing twice;
an outage of MLflow does not stop the sweep. The trials' own pipeline runs, with their loss curves and samples, are in `sweep/NAME/runs`.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from components.errors import CelebditError
from components.runtime.context import StepContext
from components.tracking.tags import TAG_KIND, TAG_RUN_KEY
from pipeline.sweeps.halving import Done, Stop
from pipeline.sweeps.page import sweep_page
from pipeline.sweeps.records import Asked, Decided, Failed, Finished, Record, Scored, Started, SweepState
from pipeline.sweeps.space import changes_of, label_of
from pipeline.sweeps.standing import Standing, standings
from pipeline.sweeps.sweep_file import Sweep, values_label

PAGE = "sweep.html"
TAG_SWEEP = "sweep.digest"
TAG_TRIAL = "sweep.trial"
TAG_STATUS = "sweep.status"
"""On a trial, where it stands: a word of `standing.py`."""
_PAUSE_S = 120.0
"""Without an attempt after MLflow was unavailable, which costs the time-outs of its client."""
_STATUS: dict[str, Literal["RUNNING", "FAILED", "KILLED"]] = {"running": "RUNNING", "failed": "FAILED", "interrupted": "KILLED"}
_PARENT = "mlflow.parentRunId"
_NOTE = "mlflow.note.content"


def sweep_experiment(name: str) -> str:
    """Return the MLflow experiment of the sweep `name`."""
    return f"sweep/{name}"


class SweepLog:
    """The runs of one sweep."""

    def __init__(
        self, sweep: Sweep, context: StepContext, note: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sweep = sweep
        self._context = StepContext(
            settings=replace(context.settings, experiment=sweep_experiment(sweep.config.name)), events=context.events
        )
        self._note = note
        self._clock = clock
        self._next_try_s = float("-inf")
        self._parent: str | None = None
        self._trials: dict[int, str] = {}
        self._logged: set[tuple[int, int]] = set()
        self._described: dict[int, dict[str, str]] = {}

    @property
    def url(self) -> str | None:
        """The address of the sweep's parent run; None while MLflow is unavailable."""
        return None if self._parent is None else self._context.tracking.run_url(self._parent)

    def begin(self, state: SweepState) -> None:
        """Open the sweep's run, and log what is recorded already."""
        self._log_or_note(lambda: self._log_all(state, "RUNNING"))

    def show(self, state: SweepState, record: Record) -> None:
        """Log a record; after an outage, not for a while: the end logs all of it."""
        if self._clock() >= self._next_try_s:
            self._log_or_note(lambda: self._log(state, record))

    def end(self, state: SweepState, outcome: Stop | Done | None) -> None:
        """Log everything again, with the outcome; None if the sweep was interrupted."""
        status = "KILLED" if outcome is None else "FINISHED" if isinstance(outcome, Done) or outcome.failure is None else "FAILED"
        self._log_or_note(lambda: self._log_all(state, status))

    def _log_or_note(self, call: Callable[[], None]) -> None:
        try:
            call()
        except CelebditError as error:
            self._next_try_s = self._clock() + _PAUSE_S
            self._note(f"MLflow: {error.message.splitlines()[0]}; the sweep goes on, and logs it later")

    def _log(self, state: SweepState, record: Record) -> None:
        rows = {row.trial: row for row in standings(self._sweep, state)}
        match record:
            case Asked():
                self._log_trial(rows[record.trial], state)
            case Started() | Scored() | Failed():
                self._log_trial(rows[record.piece.trial], state)
            case Decided() | Finished():
                for trial in record.reasons if isinstance(record, Decided) else [record.trial]:
                    self._log_trial(rows[trial], state)
                self._log_parent(state)

    def _log_all(self, state: SweepState, status: str) -> None:
        is_over = status != "RUNNING"
        for row in standings(self._sweep, state, is_over=is_over):
            self._log_trial(row, state)
        self._log_parent(state, is_over=is_over)
        self._context.tracking.set_status(self._parent_id(), status)

    def _log_parent(self, state: SweepState, *, is_over: bool = False) -> None:
        tracking, run_id, config = self._context.tracking, self._parent_id(), self._sweep.config
        rows = standings(self._sweep, state, is_over=is_over)
        names = ("base", "sampler", "rungs", "seeds", "keep_one_in", "min_finished", "goal")
        params = {name: label_of(getattr(config, name)) for name in names}
        tracking.log_params(run_id, {**params, "metric": self._sweep.metric, "trials": self._sweep.num_trials})
        tags = {"sweep.device_hours": f"{state.device_s / 3600:.4f}", "sweep.varied": ", ".join(self._sweep.space.dimensions)}
        best = next((row for row in rows if row.newest is not None), None)
        if best is not None and best.newest is not None:
            tags |= {
                "sweep.best_trial": str(best.trial),
                "sweep.best_score": best.newest.text(),
                "sweep.best_values": values_label(best.values),
            }
            tracking.log_values(run_id, {self._sweep.metric: best.newest.mean}, step=max(best.scores))
        if (final := state.finished) is not None:
            version = {} if final.version is None else {"model.version": f"{final.model} {final.version}"}
            tags |= {"sweep.final_run": final.run_id, "gate": final.gate, **version}
            if final.metric is not None and final.value is not None:
                tracking.log_values(run_id, {f"final/{final.metric}": final.value}, step=0)
        tracking.set_tags(run_id, {**tags, _NOTE: self._description(rows)})
        store, layout = self._context.store, self._context.layout
        tracking.log_text(run_id, sweep_page(self._sweep, state, rows, lambda uri: store.get_bytes(layout.locate(uri))), PAGE)

    def _log_trial(self, row: Standing, state: SweepState) -> None:
        tracking, run_id = self._context.tracking, self._trial(row)
        for steps, score in row.scores.items():
            if (row.trial, steps) not in self._logged:
                half = {} if score.half_width is None else {f"{self._sweep.metric}_half_width": score.half_width}
                tracking.log_values(run_id, {self._sweep.metric: score.mean, **half}, step=steps)
                self._logged.add((row.trial, steps))
        keys = sorted({record.run_key for piece, record in state.scored.items() if piece.trial == row.trial})
        runs = sorted({record.run_id for piece, record in state.started.items() if piece.trial == row.trial})
        tags = {TAG_STATUS: row.status, "sweep.reason": row.reason, "sweep.pipeline_runs": ", ".join(runs)}
        self._describe(row.trial, run_id, {**tags, TAG_RUN_KEY: ",".join(keys)})

    def _describe(self, trial: int, run_id: str, tags: dict[str, str]) -> None:
        """Set the tags of a trial, and the status that they stand for, if they are not what was set last."""
        tracking = self._context.tracking
        if self._described.get(trial) == tags:
            return
        tracking.set_tags(run_id, tags)
        tracking.set_status(run_id, _STATUS.get(tags[TAG_STATUS], "FINISHED"))
        self._described[trial] = tags

    def _parent_id(self) -> str:
        if self._parent is None:
            identity = {TAG_KIND: "sweep", TAG_SWEEP: self._sweep.digest}
            self._parent = self._find_or_create(identity, self._sweep.config.name, {})
        return self._parent

    def _trial(self, row: Standing) -> str:
        if row.trial not in self._trials:
            identity = {TAG_KIND: "trial", TAG_SWEEP: self._sweep.digest, TAG_TRIAL: str(row.trial)}
            parent = self._parent_id()
            self._trials[row.trial] = self._find_or_create(identity, f"trial {row.trial}: {values_label(row.values)}", {_PARENT: parent})
            params: dict[str, Any] = {name: label_of(value) for name, value in changes_of(row.values).items()}
            self._context.tracking.log_params(self._trials[row.trial], params)
        return self._trials[row.trial]

    def _find_or_create(self, identity: dict[str, str], name: str, tags: dict[str, str]) -> str:
        tracking = self._context.tracking
        with tracking.translate_errors():
            run = tracking.find_run(identity) or tracking.client.create_run(
                tracking.experiment_id, tags={**identity, **tags}, run_name=name
            )
        return str(run.info.run_id)

    def _description(self, rows: list[Standing]) -> str:
        lines = [f"Sweep of {', '.join(f'`{name}`' for name in self._sweep.space.dimensions)}; `{PAGE}` shows all of it.", ""]
        names = ["trial", *(name.rpartition(".")[2] for name in self._sweep.space.dimensions), "score", "outcome"]
        lines += [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
        for row in rows[:20]:
            values = [label_of(row.values[name]) for name in self._sweep.space.dimensions]
            score = "" if row.newest is None else f"{row.newest.text()} at step {max(row.scores)}"
            lines.append(f"| {row.trial} | {' | '.join(values)} | {score} | {row.status} |")
        return "\n".join(lines)
