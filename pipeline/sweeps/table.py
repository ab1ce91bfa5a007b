"""A sweep in the terminal: one row per trial, kept up to date; elsewhere a line per record."""

import sys

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from components.reports.columns import align_columns
from components.runtime.events import Event
from pipeline.sweeps.ranking import score_of
from pipeline.sweeps.records import Asked, Decided, Failed, Finished, Record, Scored, Started, SweepState
from pipeline.sweeps.space import label_of
from pipeline.sweeps.standing import Standing, standings
from pipeline.sweeps.sweep_file import Sweep, values_label
from pipeline.view import RunView, printable

_STYLES = {"winner": "bold green", "kept": "green", "stopped": "dim", "failed": "red", "running": "cyan"}
_MOST_ROWS = 30


class SweepView(RunView):
    """Shows the table of a sweep above the progress of the run that is under way."""

    def __init__(self, sweep: Sweep, state: SweepState, *, terminal: bool | None = None) -> None:
        super().__init__(terminal=sys.stderr.isatty() if terminal is None else terminal)
        self._sweep = sweep
        self._state = state
        self._is_over = False
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> "SweepView":
        if self._terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over = True
        if self._terminal:
            self._live.stop()
        else:
            for line in table_lines(self._sweep, self._state, is_over=True):
                self.print_line(line)

    def __call__(self, event: Event) -> None:
        """Show one event of the run that is under way; without a terminal only what failed."""
        if self._terminal:
            self._draw(event)
        elif event.kind == "failed":
            self._print(event)

    def show(self, state: SweepState, record: Record) -> None:
        """Show a record."""
        self._state = state
        if isinstance(record, Started):
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._tasks.clear()
        for line in lines_of(self._sweep, record):
            self.print_line(line)

    def _render(self) -> RenderableType:
        title = Text(_title(self._sweep, self._state), style="bold", overflow="ellipsis", no_wrap=True)
        return Group(title, table(self._sweep, self._state, is_over=self._is_over), self._progress)


def lines_of(sweep: Sweep, record: Record) -> list[str]:
    """Return a record in words: a line, or for a decision a line per trial."""
    match record:
        case Asked():
            return [f"trial {record.trial}: {values_label(record.values)}"]
        case Started():
            return [f"trial {record.piece.trial}: seed {record.piece.seed} trains to step {record.piece.steps}"]
        case Scored():
            how = "stored already" if record.run_id is None else f"{record.device_s:.0f} device seconds"
            text = score_of(record.piece.trial, [record]).text()
            return [f"trial {record.piece.trial}: seed {record.piece.seed}, step {record.piece.steps}: {sweep.metric} {text} ({how})"]
        case Failed():
            return [f"trial {record.piece.trial}: seed {record.piece.seed}, step {record.piece.steps}: failed: {record.message}"]
        case Decided():
            order = sorted(
                record.reasons, key=lambda trial: (record.kept.index(trial) if trial in record.kept else len(record.kept), trial)
            )
            return [f"step {record.steps}: trial {trial}: {record.reasons[trial]}" for trial in order]
        case Finished():
            version = f"registered as {record.model} version {record.version}" if record.version else f"gate: {record.gate}"
            return [f"final run of trial {record.trial}: {version}"]


def table(sweep: Sweep, state: SweepState, *, is_over: bool = False) -> Table:
    """Return the table of all trials, the best first; none runs if the command `is_over`."""
    rows = standings(sweep, state, is_over=is_over)
    shown = Table(box=None, pad_edge=False)
    for name in ("trial", *(name.rpartition(".")[2] for name in sweep.space.dimensions), *(f"step {s}" for s in sweep.config.rungs), ""):
        shown.add_column(escape(name), justify="right" if name.startswith("step ") else "left", no_wrap=True)
    for row in rows[:_MOST_ROWS]:
        shown.add_row(*(Text(printable(cell)) for cell in cells(sweep, row)), style=_STYLES.get(row.status, ""))
    if len(rows) > _MOST_ROWS:
        shown.add_row(f"and {len(rows) - _MOST_ROWS} others")
    return shown


def cells(sweep: Sweep, row: Standing) -> list[str]:
    """Return the texts of a trial's row: number, settings, score per rung, status."""
    values = [label_of(row.values[name]) for name in sweep.space.dimensions]
    scores = [row.scores[steps].text() if steps in row.scores else "" for steps in sweep.config.rungs]
    return [str(row.trial), *values, *scores, row.status]


def table_lines(sweep: Sweep, state: SweepState, *, is_over: bool = False) -> list[str]:
    """Return the table as plain lines."""
    names = [name.rpartition(".")[2] for name in sweep.space.dimensions]
    rows = [["trial", *names, *(f"step {steps}" for steps in sweep.config.rungs), ""]]
    rows += [cells(sweep, row) for row in standings(sweep, state, is_over=is_over)]
    return [_title(sweep, state), *(f"  {line}" for line in align_columns(rows))]


def _title(sweep: Sweep, state: SweepState) -> str:
    budget = sweep.config.budget_device_hours
    limit = "" if budget is None else f" of {budget:.3g}"
    return f"sweep {sweep.config.name}: {sweep.metric}, {sweep.config.goal}; {state.device_s / 3600:.3f}{limit} device hours"
