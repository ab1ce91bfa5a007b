"""Which failure of several ranks is reported."""

import json
from pathlib import Path

import pytest

from components.errors import Preempted, RankLost
from components.runtime.rank_failures import first_failure, raise_if_preempted


def failed(folder: Path, process: int, **facts: object) -> None:
    failure = {"at_s": 5.0, "rank": process, "exit_code": 70, "message": "m", "hint": None, "kind": "RuntimeError", **facts}
    (folder / f"process-{process}.json").write_text(json.dumps(failure))


def test_the_rank_that_failed_first_is_named_and_noise_in_its_wake_is_not(tmp_path: Path) -> None:
    assert first_failure(tmp_path) is None
    failed(tmp_path, 0, at_s=3.0, exit_code=75, kind="RankLost", message="another rank is gone")
    lost = first_failure(tmp_path)
    assert isinstance(lost, RankLost)
    failed(tmp_path, 1, at_s=4.0, exit_code=3, kind="DataRefused", message="loss is not finite", hint="lower the rate")
    failed(tmp_path, 2, at_s=6.0, exit_code=3, kind="DataRefused", message="later")
    first = first_failure(tmp_path)
    assert first is not None
    assert (first.exit_code, first.message, first.hint) == (3, "rank 1: loss is not finite", "lower the rate")


def test_a_bug_of_one_rank_is_not_hidden_by_those_that_lost_it(tmp_path: Path) -> None:
    failed(tmp_path, 0, at_s=3.0, exit_code=75, kind="RankLost", message="another rank is gone")
    failed(tmp_path, 1, at_s=4.0, message="KeyError: 'x'")
    first = first_failure(tmp_path)
    assert first is not None
    assert (first.exit_code, first.message) == (70, "rank 1: KeyError: 'x'")


def test_a_stopped_rank_is_distinguished_from_a_failed_one(tmp_path: Path) -> None:
    failed(tmp_path, 0, exit_code=75, kind="Preempted", message="stopped at step 5")
    assert isinstance(first_failure(tmp_path), Preempted)


LOST = {"exit_code": 75, "kind": "RankLost", "message": "another rank is gone"}


@pytest.mark.parametrize(("at_s", "is_preempted"), [(9.0, False), (11.0, True)])
def test_a_stop_does_not_hide_a_rank_that_was_lost_before_it(tmp_path: Path, at_s: float, is_preempted: bool) -> None:
    failed(tmp_path, 0, at_s=at_s, **LOST)
    if not is_preempted:
        assert raise_if_preempted(tmp_path, 10.0) is None
        return
    with pytest.raises(Preempted, match="another rank is gone"):
        raise_if_preempted(tmp_path, 10.0)


def test_a_stop_hides_no_refused_data_and_is_itself_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Preempted, match="the step was asked to stop"):
        raise_if_preempted(tmp_path, 10.0)
    failed(tmp_path, 0, at_s=11.0, exit_code=3, kind="DataRefused", message="loss is not finite")
    assert raise_if_preempted(tmp_path, 10.0) is None
    failed(tmp_path, 0, at_s=9.0, exit_code=75, kind="Preempted", message="stopped at step 5")
    with pytest.raises(Preempted, match="stopped at step 5"):
        raise_if_preempted(tmp_path, 10.0)
