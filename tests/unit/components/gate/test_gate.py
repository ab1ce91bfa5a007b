"""Decisions of the gate."""

import pytest
from celebdit_testing.recipes import evaluation_protocol

from components.errors import BadInput
from components.gate.config import GateConfig
from components.gate.gate import decide, short_reason
from components.manifests import ChampionScores, EvaluationReport, MetricInterval
from components.runtime.context import read_section


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


def champion(score: float, *, is_challenger: bool = False, std: float | None = None, sampling: str | None = None) -> ChampionScores:
    intervals = {} if std is None else {"eval/fid_50k": interval(score, std)}
    return ChampionScores(version="3", is_challenger=is_challenger, sampling=sampling, metrics={"eval/fid_50k": score}, intervals=intervals)


UNMEASURED = ChampionScores(version="3", problem="generates images of 64 px, this dataset has 32 px")


@pytest.mark.parametrize(
    ("config", "against", "decision", "reason"),
    [
        (GateConfig(), None, "pass", "no bound"),
        (GateConfig(at_most={"eval/fid_50k": 10.0}), None, "pass", "at most 10"),
        (GateConfig(at_most={"eval/fid_50k": 9.99}), None, "fail", "at most 9.99"),
        (GateConfig(at_least={"eval/recall": 0.5}), None, "fail", "at least 0.5"),
        (GateConfig(), champion(9.0), "fail", "champion version 3 has 9 (a difference of 0 can be chance): worse"),
        (GateConfig(), champion(11.0), "pass", "champion version 3 has 11"),
        (GateConfig(), champion(9.0, sampling="heun, 20 steps"), "fail", "champion version 3 drawn with heun, 20 steps has 9 (a"),
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
def test_the_gate_decides_and_says_why(config: GateConfig, against: ChampionScores | None, decision: str, reason: str) -> None:
    outcome = decide(report(champion=against, **{"eval/recall": 0.4}), config)
    assert outcome.decision == decision
    assert reason in "; ".join(outcome.reasons)


@pytest.mark.parametrize(
    ("bounds", "short"),
    [
        ({}, "no bound is configured"),
        ({"eval/fid_50k": 11.0}, "at most 11 is required"),
        ({"eval/fid_50k": 11.0, "eval/recall": 1.0}, "at most 11 is required; 1 more condition holds"),
        ({"eval/fid_50k": 11.0, "eval/recall": 1.0, "eval/x": 1.0}, "at most 11 is required; 2 more conditions hold"),
        ({"eval/fid_50k": 11.0, "eval/recall": 0.1, "eval/x": 0.1}, "at most 0.1 is required; eval/x is 0.3, at most 0.1 is required"),
    ],
)
def test_the_line_about_a_gate_has_every_failure_and_one_condition_that_holds(bounds: dict[str, float], short: str) -> None:
    outcome = decide(report(**{"eval/recall": 0.4, "eval/x": 0.3}), GateConfig(at_most=bounds))
    line = short_reason(outcome)
    assert short in line
    assert line.count("required") == (len(bounds) - 1 if outcome.decision == "fail" else min(len(bounds), 1))


def test_a_bound_on_something_that_was_not_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="eval/fid_5k, which was not measured") as raised:
        decide(report(), GateConfig(at_most={"eval/fid_5k": 1.0}))
    assert "eval/fid_50k" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("config", "decision", "reason"),
    [
        (GateConfig(at_most={"eval/fid_50k": 10.5}), "fail", "95 %: 9.02 to 10.98"),
        (GateConfig(at_most={"eval/fid_50k": 11.0}), "pass", "at most 11"),
        (GateConfig(at_most={"eval/fid_50k": 10.5}, cautious=False), "pass", "eval/fid_50k is 10, at most 10.5"),
        (GateConfig(at_least={"eval/fid_50k": 9.5}), "fail", "at least 9.5"),
        (GateConfig(at_least={"eval/fid_50k": 9.0}), "pass", "at least 9"),
    ],
)
def test_a_bound_must_hold_at_the_worse_end_of_the_interval(config: GateConfig, decision: str, reason: str) -> None:
    outcome = decide(report(std=0.5), config)
    assert outcome.decision == decision
    assert reason in "; ".join(outcome.reasons)


def test_a_gate_that_asks_for_two_things_at_once_is_refused() -> None:
    with pytest.raises(BadInput, match="contradict each other"):
        read_section(GateConfig, '{"better_than_champion": true, "tolerance": 0.1}', name="gate")
