"""The loop with its journal in a real object store: killed anywhere and run again, a second process, damage, stored measurements."""

from pathlib import Path

import pytest
from celebdit_testing.recipes import dataset_manifest
from celebdit_testing.sweeps import METRIC, FreeRunner, report_of, spec_of, sweep_of

from components.errors import BadInput, DataRefused, TemporaryFailure
from components.storage import ObjectStore, StoreUri, connect
from components.stores.layout import StoreLayout
from pipeline.config import RunConfig
from pipeline.sweeps.coordinator import Coordinator
from pipeline.sweeps.halving import Done, Stop
from pipeline.sweeps.journal import Journal
from pipeline.sweeps.measured import stored_report
from pipeline.sweeps.records import Piece, SweepState
from pipeline.sweeps.sweep_file import Sweep


class Killed(BaseException):
    pass


@pytest.fixture
def store(rclone_endpoint: str) -> ObjectStore:
    return connect(rclone_endpoint, deadline_s=5.0)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path)


def invocation(sweep: Sweep, store: ObjectStore, folder: StoreUri, runner: FreeRunner) -> tuple[SweepState, Stop | Done]:
    """One call of the command: it knows nothing but the journal."""
    journal = Journal(store, folder)
    state = SweepState.of(journal.read())
    return state, Coordinator(sweep, journal, runner, lambda config: None, clock=lambda: 0.0).run(state)


def test_killed_in_every_run_it_goes_on_and_ends_like_one_that_was_not(sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    whole = FreeRunner()
    expected, end = invocation(sweep, store, prefix / "whole", whole)
    assert end == Done()
    assert expected.finished is not None
    assert expected.values(expected.finished.trial) == {"network.dropout": 0.0, "optimizer.lr_peak": 2e-3}

    def kill_new(piece: Piece | None) -> None:
        if piece not in killed:
            killed.append(piece)
            raise Killed

    killed: list[Piece | None] = []
    kills = 0
    while True:
        try:
            state, end = invocation(sweep, store, prefix / "killed", FreeRunner(kill_new))
            break
        except Killed:
            kills += 1
    assert kills == len(whole.ran) == 7, "4 on the first rung, 2 on the second, and the final run"
    assert (state.decided, state.finished, state.device_s) == (expected.decided, expected.finished, expected.device_s)


def test_run_again_after_its_end_nothing_is_run(sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    invocation(sweep, store, prefix, FreeRunner())
    again = FreeRunner()
    state, end = invocation(sweep, store, prefix, again)
    assert (end, again.ran) == (Done(), [])
    assert state.finished is not None


def test_a_second_process_is_noticed_at_its_first_record(sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    def meanwhile(piece: Piece | None) -> None:
        if piece == Piece(4, 1, 0):
            other = Journal(store, prefix)
            other.append(SweepState.of(other.read()).asked[0])

    with pytest.raises(TemporaryFailure, match="another process works on this sweep"):
        invocation(sweep, store, prefix, FreeRunner(meanwhile))
    _, end = invocation(sweep, store, prefix, FreeRunner())
    assert end == Done(), "run again, it goes on"


def test_a_damaged_record_is_named_and_made_again_once_it_is_deleted(sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    expected, _ = invocation(sweep, store, prefix, FreeRunner())
    records = store.list(prefix)
    middle = records[len(records) // 2].uri
    store.put_bytes(middle, b'{"kind": "scored"')
    with pytest.raises(DataRefused, match=middle.name):
        invocation(sweep, store, prefix, FreeRunner())
    store.delete(middle)
    state, end = invocation(sweep, store, prefix, FreeRunner())
    assert end == Done()
    assert state.finished == expected.finished


def test_bad_input_of_a_run_ends_the_sweep_and_is_tried_again_by_the_next(sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    first = FreeRunner(lambda piece: BadInput("no weights"))
    _, end = invocation(sweep, store, prefix, first)
    assert isinstance(end, Stop)
    assert end.failure is not None
    assert (end.failure.exit_code, len(first.ran)) == (2, 1)
    assert invocation(sweep, store, prefix, FreeRunner())[1] == Done()


def test_a_final_run_that_fails_is_made_by_the_next_invocation(sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    with pytest.raises(TemporaryFailure):
        invocation(sweep, store, prefix, FreeRunner(lambda piece: TemporaryFailure("MLflow") if piece is None else None))
    again = FreeRunner()
    assert invocation(sweep, store, prefix, again)[1] == Done()
    assert again.ran == ["final"]


def test_a_measurement_that_is_stored_is_not_made_again(sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    layout = StoreLayout(prefix)
    dataset = dataset_manifest(name="smoke-faces", image_px=32, num_images=48)
    values = {"network.dropout": 0.0, "optimizer.lr_peak": 2e-3}
    config = sweep.trial(values, seed=0, steps=4)
    assert stored_report(config, dataset, store, layout) is None
    report = report_of(config)
    place = spec_of(config).report_uri(layout)
    later = sweep.trial(values, seed=0, steps=8)
    store.put_bytes(place / "report.json", report.model_dump_json().encode())
    assert stored_report(config, dataset, store, layout) == report
    assert stored_report(later, dataset, store, layout) is None, "another step"
    other = config.model_copy(update={"sampling": config.sampling.model_copy(update={"seed": 7})})
    assert stored_report(other, dataset, store, layout) is None, "another protocol"

    def find(config: RunConfig) -> object:
        return stored_report(config, dataset, store, layout)

    runner, journal = FreeRunner(), Journal(store, prefix / "records")
    state = SweepState.of(journal.read())
    assert Coordinator(sweep, journal, runner, find).run(state) == Done()  # type: ignore[arg-type]
    (found,) = [record for record in state.scored.values() if record.run_id is None]
    assert (found.piece, found.device_s, found.value) == (Piece(4, 1, 0), 0.0, report.metrics[METRIC])
    assert found.piece not in runner.ran
