"""Run a sweep with the clients of a session: its journal, its trials, its runs in MLflow and its table in the terminal."""

from collections.abc import Callable
from dataclasses import dataclass

from components.manifests import DatasetManifest, EvaluationReport
from components.runtime.context import StepContext
from pipeline.config import RunConfig
from pipeline.planning.steps import StoreView, find_dataset
from pipeline.sweeps.coordinator import Coordinator, TrialRunner
from pipeline.sweeps.halving import Done, Stop
from pipeline.sweeps.journal import Journal
from pipeline.sweeps.measured import stored_report
from pipeline.sweeps.mlflow_log import SweepLog
from pipeline.sweeps.records import Record, SweepState
from pipeline.sweeps.sweep_file import Sweep
from pipeline.sweeps.table import SweepView


@dataclass
class StoredReports:
    """Looks for measurements in the store; the dataset, which all trials share, is found once."""

    context: StepContext
    _dataset: DatasetManifest | None = None

    def find(self, config: RunConfig) -> EvaluationReport | None:
        """Return the report of a trial that is stored already, or None."""
        store, layout = self.context.store, self.context.layout
        if self._dataset is None:
            self._dataset = find_dataset(config, StoreView(store, layout))
        return None if self._dataset is None else stored_report(config, self._dataset, store, layout)


@dataclass(frozen=True)
class Search:
    """What came of an invocation."""

    state: SweepState
    end: Stop | Done
    mlflow_url: str | None


def search(sweep: Sweep, context: StepContext, make_runner: Callable[[SweepView, StoredReports], TrialRunner]) -> Search:
    """Go on with a sweep until nothing is left to do.

    Raises:
        CelebditError: if the final run fails, or storage is unavailable.
    """
    journal = Journal(context.store, context.layout.sweep(sweep.digest))
    state = SweepState.of(journal.read())
    reports = StoredReports(context)
    with SweepView(sweep, state) as view:
        log = SweepLog(sweep, context, view.print_line)
        log.begin(state)

        def show(state: SweepState, record: Record) -> None:
            view.show(state, record)
            log.show(state, record)

        end: Stop | Done | None = None
        try:
            end = Coordinator(sweep, journal, make_runner(view, reports), reports.find, show).run(state)
        finally:
            log.end(state, end)
    return Search(state, end, log.url)
