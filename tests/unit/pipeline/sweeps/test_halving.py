"""Successive halving as a pure function: what is started, decided and finished, whatever was killed in between."""

import random
from dataclasses import replace

import pytest

from pipeline.sweeps.halving import Ask, Decide, Done, Finish, Now, Schedule, Start, Stop, Wait, next_action
from pipeline.sweeps.ranking import Score, score_of
from pipeline.sweeps.records import RECORD, Asked, Decided, Failed, Finished, Piece, Record, Scored, Started, SweepState

SCHEDULE = Schedule(num_trials=6, seeds=(0, 1), rungs=(10, 30, 90), keep_one_in=2, min_finished=0.8, goal="minimize")


def scored(piece: Piece, value: float, *, at_s: float = 0.0, device_s: float = 1.0) -> Scored:
    return Scored(at_s=at_s, piece=piece, run_id="r", run_key="k", value=value, device_s=device_s)


def failed(piece: Piece, exit_code: int) -> Failed:
    return Failed(at_s=0.0, piece=piece, run_id="r", exit_code=exit_code, message=f"code {exit_code}")


def asked(trial: int) -> Asked:
    return Asked(at_s=0.0, trial=trial, values={"optimizer.lr_peak": trial}, sampler="grid")


def loss(piece: Piece) -> float:
    """Trial 4 is best, then 1, 0, 2, 3, 5; seeds differ a little."""
    return [3.0, 2.0, 4.0, 5.0, 1.0, 6.0][piece.trial] + 0.1 * piece.seed


def run_sweep(schedule: Schedule, records: list[Record], *, most: int = 1000, fail: dict[Piece, int] | None = None) -> Stop | Done | None:
    """Carry out at most so many actions as one invocation, and append what a sweep would record; None if it was killed."""
    tries: dict[Piece, int] = {}
    for _ in range(most):
        state = SweepState.of(records)
        match next_action(schedule, state, Now(tries=tries)):
            case Ask(trial):
                records.append(asked(trial))
            case Start(piece):
                records.append(Started(at_s=0.0, piece=piece, run_id="r"))
                code = (fail or {}).get(piece)
                if code is not None:
                    tries[piece] = tries.get(piece, 0) + 1
                    records.append(failed(piece, code))
                else:
                    records.append(scored(piece, loss(piece)))
            case Decide(steps, kept, reasons):
                records.append(Decided(at_s=0.0, steps=steps, kept=kept, reasons=reasons))
            case Finish(trial):
                records.append(Finished(at_s=0.0, trial=trial, run_id="final", gate="pass"))
            case (Stop() | Done()) as end:
                return end
            case Wait():
                raise AssertionError("nothing runs")
    return None


def test_each_rung_keeps_the_best_and_the_winner_is_finished_once() -> None:
    records: list[Record] = []
    assert run_sweep(SCHEDULE, records) == Done()
    state = SweepState.of(records)
    assert [state.decided[steps].kept for steps in SCHEDULE.rungs] == [(4, 1, 0), (4,), (4,)]
    assert state.finished is not None
    assert state.finished.trial == 4
    starts = [record.piece for record in records if isinstance(record, Started)]
    assert len(starts) == len(set(starts)) == 12 + 6 + 2, "each piece of work is done once"
    assert [type(record).__name__ for record in records].count("Finished") == 1


def test_killed_after_any_record_and_run_again_a_sweep_ends_alike() -> None:
    whole: list[Record] = []
    run_sweep(SCHEDULE, whole)
    for cut in range(len(whole)):
        records = whole[:cut]
        assert run_sweep(SCHEDULE, records) == Done()
        assert SweepState.of(records).decided == SweepState.of(whole).decided, f"killed after {cut} records"
        assert SweepState.of(records).finished == SweepState.of(whole).finished


def test_killed_again_and_again_it_still_ends() -> None:
    draws = random.Random(0)
    records: list[Record] = []
    while (end := run_sweep(SCHEDULE, records, most=draws.randint(1, 4))) is None:
        records = records[: len(records) - draws.randint(0, 1)]
    assert end == Done()


def test_a_record_that_was_written_twice_changes_nothing() -> None:
    records: list[Record] = []
    run_sweep(SCHEDULE, records)
    twice = [record for record in records for _ in range(2) if not isinstance(record, Started)]
    assert SweepState.of(twice).device_s == SweepState.of(records).device_s
    assert SweepState.of(twice).scored == SweepState.of(records).scored
    other = scored(Piece(10, 4, 0), 99.0)
    assert SweepState.of([*records, other]).scored == SweepState.of(records).scored, "the first counts"


def test_records_survive_json() -> None:
    records: list[Record] = []
    run_sweep(SCHEDULE, records, fail={Piece(10, 5, 0): 3})
    assert [RECORD.validate_json(record.model_dump_json()) for record in records] == records
    assert {record.kind for record in records} == {"asked", "started", "scored", "failed", "decided", "finished"}


def test_settings_that_cannot_be_trained_end_a_trial_for_good() -> None:
    records: list[Record] = []
    assert run_sweep(SCHEDULE, records, fail={Piece(10, 4, 1): 3}) == Done()
    state = SweepState.of(records)
    assert state.decided[10].kept == (1, 0, 2)
    assert state.decided[10].reasons[4] == "stopped: code 3"
    assert [record.piece for record in records if isinstance(record, Started)].count(Piece(10, 4, 1)) == 1


def test_a_failure_that_may_pass_is_tried_three_times_and_then_left_out_if_enough_have_ended() -> None:
    records: list[Record] = []
    assert run_sweep(SCHEDULE, records, fail={Piece(10, 5, 0): 75}) == Done()
    assert [record.piece for record in records if isinstance(record, Started)].count(Piece(10, 5, 0)) == 3
    assert SweepState.of(records).decided[10].reasons[5] == "stopped: code 75"


def test_a_sweep_stops_if_too_few_have_ended_and_goes_on_when_it_is_run_again() -> None:
    records: list[Record] = []
    end = run_sweep(SCHEDULE, records, fail={Piece(10, 5, 0): 75, Piece(10, 4, 0): 70})
    assert isinstance(end, Stop)
    assert end.failure is not None
    assert (end.failure.exit_code, end.failure.piece.trial) == (70, 4)
    assert "4 of 6 trials" in end.reason
    assert run_sweep(SCHEDULE, records) == Done()
    assert SweepState.of(records).decided[10].kept == (4, 1, 0)


def test_bad_input_stops_at_once_because_every_trial_would_share_it() -> None:
    records: list[Record] = []
    end = run_sweep(SCHEDULE, records, fail={Piece(10, 0, 0): 2})
    assert isinstance(end, Stop)
    assert len([record for record in records if isinstance(record, Started)]) == 1


def test_maximize_keeps_the_largest() -> None:
    records: list[Record] = []
    run_sweep(replace(SCHEDULE, goal="maximize"), records)
    assert SweepState.of(records).decided[10].kept == (5, 3, 2)


@pytest.mark.parametrize(("members", "keep_one_in", "kept"), [(9, 3, 3), (8, 3, 2), (2, 3, 1), (5, 2, 2)])
def test_of_so_many_one_goes_on_and_never_none(members: int, keep_one_in: int, kept: int) -> None:
    schedule = replace(SCHEDULE, num_trials=members, keep_one_in=keep_one_in, seeds=(0,))
    records: list[Record] = [*map(asked, range(members)), *(scored(Piece(10, trial, 0), trial) for trial in range(members))]
    decision = next_action(schedule, SweepState.of(records), Now())
    assert isinstance(decision, Decide)
    assert decision.kept == tuple(range(kept))


def running_late(at_s: float, *, num_scored: int = 5) -> list[Record]:
    """Six trials of one seed began at 0 s; all but the last ones were scored after 10 s."""
    pieces = [Piece(10, trial, 0) for trial in range(6)]
    records: list[Record] = [*map(asked, range(6)), *(Started(at_s=0.0, piece=piece, run_id="r") for piece in pieces)]
    return [*records, *(scored(piece, loss(piece), at_s=10.0) for piece in pieces[:num_scored])]


@pytest.mark.parametrize(("at_s", "num_scored", "expected"), [(19.0, 5, Wait), (21.0, 5, Decide), (21.0, 4, Wait)])
def test_one_slow_trial_does_not_hold_the_others(at_s: float, num_scored: int, expected: type) -> None:
    state = SweepState.of(running_late(at_s, num_scored=num_scored))
    running = {Piece(10, trial, 0) for trial in range(num_scored, 6)}
    action = next_action(replace(SCHEDULE, seeds=(0,)), state, Now(running=running, free=4, at_s=at_s))
    assert isinstance(action, expected)
    if isinstance(action, Decide):
        assert action.reasons[5] == "stopped: it took too long"


def test_runs_are_started_up_to_the_free_places_and_before_waiting() -> None:
    state = SweepState.of([asked(0)])
    piece = Piece(10, 0, 0)
    assert next_action(SCHEDULE, state, Now(free=2)) == Start(piece)
    assert next_action(SCHEDULE, state, Now(running={piece}, free=1)) == Start(Piece(10, 0, 1))
    assert next_action(SCHEDULE, state, Now(running={piece, Piece(10, 0, 1)}, free=1)) == Ask(1)
    assert next_action(SCHEDULE, state, Now(running={piece, Piece(10, 0, 1)}, free=0)) == Wait()


def test_a_budget_ends_a_sweep_before_work_that_does_not_fit() -> None:
    """Each run costs 1 s: 12 on the first rung at 0.1 s a step, so that one on the second is expected to take 2 s."""
    records: list[Record] = []
    end = run_sweep(replace(SCHEDULE, budget_s=13.5), records)
    assert isinstance(end, Stop)
    assert "budget" in end.reason
    assert end.failure is None
    assert SweepState.of(records).device_s == 12.0
    assert list(SweepState.of(records).decided) == [10]
    assert run_sweep(replace(SCHEDULE, budget_s=1000.0), records) == Done(), "a larger budget goes on from there"
    short: list[Record] = []
    assert isinstance(run_sweep(replace(SCHEDULE, budget_s=25.0, final_steps=9000), short), Stop), "the final run counts"


def test_an_interval_over_seeds_is_students_t() -> None:
    """The values 1, 2, 3 have mean 2 and standard error 0.57735; the 95 % quantile for two degrees of freedom is 4.3027."""
    score = score_of(0, [scored(Piece(10, 0, seed), value) for seed, value in enumerate((1.0, 2.0, 3.0))])
    assert score.mean == 2.0
    assert score.half_width == pytest.approx(2.4841, abs=1e-4)
    single = score_of(0, [scored(Piece(10, 0, 0), 2.0).model_copy(update={"low": 1.5, "high": 2.75})])
    assert (single.low, single.high, single.num_seeds) == (1.5, 2.75, 1)


def test_no_difference_is_shown_where_intervals_overlap() -> None:
    first, near, far, bare = (
        Score(0, 1.0, 0.5, 1.5, 2),
        Score(1, 1.4, 1.2, 1.6, 2),
        Score(2, 3.0, 2.9, 3.1, 2),
        Score(3, 9.0, None, None, 1),
    )
    assert first.overlaps(near)
    assert not first.overlaps(far)
    assert first.overlaps(bare) is None
    records: list[Record] = [*map(asked, range(2))]
    records += [scored(Piece(10, trial, seed), trial * 0.1 + seed) for trial in range(2) for seed in (0, 1)]
    decision = next_action(replace(SCHEDULE, num_trials=2), SweepState.of(records), Now())
    assert isinstance(decision, Decide)
    assert decision.reasons[0].endswith("no difference shown to trial 1")
    assert decision.reasons[1].endswith("no difference shown to trial 0")
