"""Pure decisions: the gate, the promotion log, run identity, manifests and process failures."""

import json
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.recipes import dataset_manifest, evaluation_protocol, tiny_recipe
from hypothesis import given
from hypothesis import strategies as st

from components.errors import BadInput, DataRefused, Preempted, RankLost
from components.gate.config import GateConfig
from components.gate.gate import decide
from components.manifests import ChampionScores, DatasetManifest, EvaluationReport, MetricInterval
from components.registry.promotions import Move, Standing, next_move, standing_after, validate_reason
from components.runtime.context import read_section
from components.runtime.launch import first_failure
from components.train.spec import differences, run_key
from model.config import OptimizerConfig


def report(champion: ChampionScores | None = None, std: float | None = None, **metrics: float) -> EvaluationReport:
    return EvaluationReport(
        uri="s3://bucket/x",
        protocol_digest="a" * 64,
        protocol=evaluation_protocol(),
        run_key="k",
        checkpoint_uri="s3://bucket/c",
        checkpoint_digest="c" * 64,
        checkpoint_step=10,
        dataset_digest="d" * 64,
        headline="eval/fid_50k",
        metrics={"eval/fid_50k": 10.0, **metrics},
        intervals={} if std is None else {"eval/fid_50k": interval(10.0, std)},
        grid_uri="s3://bucket/g",
        champion=champion,
    )


def interval(value: float, std: float) -> MetricInterval:
    return MetricInterval(low=value - 1.959964 * std, high=value + 1.959964 * std, std=std)


def champion(score: float, *, is_challenger: bool = False, std: float | None = None) -> ChampionScores:
    intervals = {} if std is None else {"eval/fid_50k": interval(score, std)}
    return ChampionScores(version="3", is_challenger=is_challenger, metrics={"eval/fid_50k": score}, intervals=intervals)


UNMEASURED = ChampionScores(version="3", problem="generates images of 64 px, this dataset has 32 px")


@pytest.mark.parametrize(
    ("config", "against", "decision", "said"),
    [
        (GateConfig(), None, "pass", "no bound"),
        (GateConfig(at_most={"eval/fid_50k": 10.0}), None, "pass", "at most 10"),
        (GateConfig(at_most={"eval/fid_50k": 9.99}), None, "fail", "at most 9.99"),
        (GateConfig(at_least={"eval/recall": 0.5}), None, "fail", "at least 0.5"),
        (GateConfig(), champion(9.0), "fail", "champion version 3 has 9 (a difference of 0 can be chance): worse"),
        (GateConfig(), champion(11.0), "pass", "champion version 3 has 11"),
        (GateConfig(), champion(9.0, std=0.6), "pass", "a difference of 1.2 can be chance"),
        (GateConfig(), champion(9.0, std=0.4), "fail", "a difference of 0.78 can be chance): worse"),
        (GateConfig(better_than_champion=True), champion(11.0, std=0.6), "fail", "not better"),
        (GateConfig(better_than_champion=True), champion(11.0, std=0.4), "pass", "champion version 3 has 11"),
        (GateConfig(tolerance=0.2), champion(9.0), "pass", "champion version 3"),
        (GateConfig(no_worse_than_champion=False), champion(9.0), "pass", "no bound"),
        (GateConfig(), UNMEASURED, "fail", "generates images of 64 px"),
        (GateConfig(no_worse_than_champion=False), UNMEASURED, "pass", "no bound"),
        (GateConfig(), champion(9.0, is_challenger=True), "pass", "these weights are champion version 3"),
    ],
)
def test_the_gate_decides_and_says_why(config: GateConfig, against: ChampionScores | None, decision: str, said: str) -> None:
    found = decide(report(champion=against, **{"eval/recall": 0.4}), config)
    assert found.decision == decision
    assert said in "; ".join(found.reasons)


def test_a_bound_on_something_that_was_not_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="eval/fid_5k, which was not measured") as raised:
        decide(report(), GateConfig(at_most={"eval/fid_5k": 1.0}))
    assert "eval/fid_50k" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("config", "decision", "said"),
    [
        (GateConfig(at_most={"eval/fid_50k": 10.5}), "fail", "95 %: 9.02 to 10.98"),
        (GateConfig(at_most={"eval/fid_50k": 11.0}), "pass", "at most 11"),
        (GateConfig(at_most={"eval/fid_50k": 10.5}, cautious=False), "pass", "eval/fid_50k is 10, at most 10.5"),
        (GateConfig(at_least={"eval/fid_50k": 9.5}), "fail", "at least 9.5"),
        (GateConfig(at_least={"eval/fid_50k": 9.0}), "pass", "at least 9"),
    ],
)
def test_a_bound_must_hold_at_the_worse_end_of_the_interval(config: GateConfig, decision: str, said: str) -> None:
    found = decide(report(std=0.5), config)
    assert found.decision == decision
    assert said in "; ".join(found.reasons)


def test_a_gate_that_asks_for_two_things_at_once_is_refused() -> None:
    with pytest.raises(BadInput, match="contradict each other"):
        read_section(GateConfig, '{"better_than_champion": true, "tolerance": 0.1}', name="gate")


def move(number: int, action: str, version: str) -> Move:
    return Move(id=f"{number:04d}", action=action, version=version, reason="r", by="b", at="t")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("moves", "standing"),
    [
        ([], Standing(None, None)),
        ([("promote", "1")], Standing("1", None)),
        ([("promote", "1"), ("promote", "2")], Standing("2", "1")),
        ([("promote", "1"), ("promote", "2"), ("rollback", "2")], Standing("1", None)),
        ([("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "3")], Standing("2", "1")),
        ([("promote", "1"), ("promote", "1")], Standing("1", None)),
        ([("rollback", "1")], Standing(None, None)),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1")], Standing("2", "1")),
    ],
)
def test_the_aliases_follow_from_the_log(moves: list[tuple[str, str]], standing: Standing) -> None:
    assert standing_after([move(n, action, version) for n, (action, version) in enumerate(moves)]) == standing


def test_a_deleted_version_is_never_champion_again() -> None:
    moves = [move(n, "promote", version) for n, version in enumerate(["1", "2", "3", "2"])]
    assert standing_after(moves, {"1", "2", "3"}) == Standing("2", "3")
    assert standing_after(moves, {"1", "3"}) == Standing("3", "1")
    assert standing_after(moves, {"2"}) == Standing("2", None)
    assert standing_after(moves, set()) == Standing(None, None)


def test_a_move_comes_after_all_that_were_seen_whatever_the_clock_says() -> None:
    first = next_move([], "promote", "1", reason="r", by="b", forced=False, now_s=2_000_000.0)
    behind = next_move([first], "promote", "2", reason="r", by="b", forced=False, now_s=1_000_000.0)
    assert standing_after([behind, first]) == Standing("2", "1")
    assert Move.parse(behind.id, behind.text()) == behind


@pytest.mark.parametrize(("reason", "said"), [("", "needs a reason"), (" \n ", "needs a reason"), ("x" * 1001, "1001 characters")])
def test_a_move_without_a_usable_reason_is_refused(reason: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        validate_reason(reason, "promotion")


@given(st.permutations([move(n, "promote", str(n % 5)) for n in range(8)]))
def test_the_order_in_which_the_log_is_read_does_not_matter(moves: list[Move]) -> None:
    assert standing_after(moves) == standing_after(sorted(moves, key=lambda m: m.id))


def key_of(**changes: Any) -> str:
    recipe = tiny_recipe(**{name: value for name, value in changes.items() if name != "lr"})
    optimizer = OptimizerConfig(lr_peak=changes.get("lr", 1e-3))
    return run_key(recipe.model_copy(update={"optimizer": optimizer}).identity("d" * 64))


@pytest.mark.parametrize("change", [{"lr": 2e-3}, {"batch_images": 16}, {"seed": 1}, {"network": {"width": 64}}])
def test_what_moves_the_numbers_makes_another_run(change: dict[str, Any]) -> None:
    assert key_of(**change) != key_of()


@pytest.mark.parametrize("change", [{"total_steps": 99}, {"checkpoint_every_s": 5.0}, {"log_every_steps": 7}, {"microbatch_images": 2}])
def test_what_does_not_move_the_numbers_is_the_same_run(change: dict[str, Any]) -> None:
    assert key_of(**change) == key_of()


def test_the_run_key_is_stable_over_releases() -> None:
    assert run_key({"a": 1, "b": [1, 2]}) == "8baa73198470c7bb"


def test_differences_are_told_field_by_field() -> None:
    saved = {"network": {"width": 128, "depth": 4}, "seed": 1}
    wanted = {"network": {"width": 256, "depth": 4}, "seed": 1, "extra": True}
    assert differences(saved, wanted) == ["extra: absent -> True", "network.width: 128 -> 256"]
    assert differences(saved, saved) == []


def test_a_manifest_survives_a_file_and_refuses_another_kind(tmp_path: Path) -> None:
    manifest = dataset_manifest()
    manifest.dump(tmp_path / "m")
    assert DatasetManifest.load(tmp_path / "m") == manifest
    with pytest.raises(DataRefused, match="is not a EvaluationReport"):
        EvaluationReport.load(tmp_path / "m")
    (tmp_path / "m").write_text("{")
    with pytest.raises(DataRefused):
        DatasetManifest.load(tmp_path / "m")
    with pytest.raises(DataRefused, match="no DatasetManifest at"):
        DatasetManifest.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"lr_peak": "a"}', "optimizer.lr_peak: .*given: 'a'"),
        ('{"lr_peak": 2.0}', "optimizer.lr_peak: .*less than or equal to 1"),
        ('{"lrr": 1}', "unknown key optimizer.lrr"),
        ('{"warmup_steps": 8.0}', "optimizer.warmup_steps"),
        ("[]", "optimizer"),
        ("{", "optimizer"),
        ('{"schedule": "cosine"}', "needs decay_steps"),
    ],
)
def test_a_section_that_does_not_validate_is_described(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_section(OptimizerConfig, text, name="optimizer")


def failed(folder: Path, process: int, **facts: object) -> None:
    told = {"at_s": 5.0, "rank": process, "exit_code": 70, "message": "m", "hint": None, "kind": "RuntimeError", **facts}
    (folder / f"process-{process}.json").write_text(json.dumps(told))


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


def test_a_rank_that_was_asked_to_stop_is_told_from_one_that_failed(tmp_path: Path) -> None:
    failed(tmp_path, 0, exit_code=75, kind="Preempted", message="stopped at step 5")
    assert isinstance(first_failure(tmp_path), Preempted)
