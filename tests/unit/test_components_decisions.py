"""Pure decisions: the gate, the promotion log, run identity, manifests and process failures."""

import json
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.recipes import dataset_manifest, tiny_recipe
from hypothesis import given
from hypothesis import strategies as st

from components.context import read_section
from components.errors import BadInput, DataRefused
from components.gate.config import GateConfig
from components.gate.gate import Champion, decide
from components.launch import first_failure
from components.manifests import DatasetManifest, EvaluationReport
from components.registry import Move, Standing, standing_after
from components.train.spec import differences, identity, run_key
from model.config import OptimizerConfig


def report(**metrics: float) -> EvaluationReport:
    return EvaluationReport(
        uri="s3://bucket/x",
        protocol_digest="a" * 64,
        protocol={},
        run_key="k",
        checkpoint_uri="s3://bucket/c",
        checkpoint_digest="c" * 64,
        checkpoint_step=10,
        dataset_digest="d" * 64,
        headline="eval/fid_50k",
        metrics={"eval/fid_50k": 10.0, **metrics},
        grid_uri="s3://bucket/g",
    )


def champion(score: float | None, digest: str = "b" * 64) -> Champion:
    return Champion(version="3", checkpoint_digest=digest, score=score)


@pytest.mark.parametrize(
    ("config", "against", "decision", "said"),
    [
        (GateConfig(), None, "pass", "no bound"),
        (GateConfig(at_most={"eval/fid_50k": 10.0}), None, "pass", "at most 10"),
        (GateConfig(at_most={"eval/fid_50k": 9.99}), None, "fail", "at most 9.99"),
        (GateConfig(at_least={"eval/recall": 0.5}), None, "fail", "at least 0.5"),
        (GateConfig(), champion(9.0), "fail", "worse than champion version 3"),
        (GateConfig(), champion(11.0), "pass", "champion version 3 has 11"),
        (GateConfig(tolerance=0.2), champion(9.0), "pass", "champion version 3"),
        (GateConfig(no_worse_than_champion=False), champion(9.0), "pass", "no bound"),
        (GateConfig(), champion(None), "pass", "another protocol"),
        (GateConfig(), champion(9.0, digest="c" * 64), "pass", "no bound"),
    ],
)
def test_the_gate_decides_and_says_why(config: GateConfig, against: Champion | None, decision: str, said: str) -> None:
    found = decide(report(**{"eval/recall": 0.4}), config, against)
    assert found.decision == decision
    assert said in "; ".join(found.reasons)


def test_a_bound_on_something_that_was_not_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="eval/fid_5k, which was not measured") as raised:
        decide(report(), GateConfig(at_most={"eval/fid_5k": 1.0}), None)
    assert "eval/fid_50k" in str(raised.value.hint)


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


@given(st.permutations([move(n, "promote", str(n % 5)) for n in range(8)]))
def test_the_order_in_which_the_log_is_read_does_not_matter(moves: list[Move]) -> None:
    assert standing_after(moves) == standing_after(sorted(moves, key=lambda m: m.id))


def key_of(**changes: Any) -> str:
    recipe = tiny_recipe(**{name: value for name, value in changes.items() if name != "lr"})
    optimizer = OptimizerConfig(lr_peak=changes.get("lr", 1e-3))
    return run_key(identity("d" * 64, recipe.network, recipe.diffusion, optimizer, recipe.training))


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


def test_the_rank_that_failed_first_is_named_and_noise_in_its_wake_is_not(tmp_path: Path) -> None:
    assert first_failure(tmp_path) is None
    failures = [
        {"at_s": 5.0, "rank": 0, "exit_code": 70, "message": "RuntimeError: connection closed by peer", "hint": None},
        {"at_s": 4.0, "rank": 1, "exit_code": 3, "message": "loss is not finite", "hint": "lower the rate"},
        {"at_s": 6.0, "rank": 2, "exit_code": 3, "message": "later", "hint": None},
    ]
    for failure in failures:
        (tmp_path / f"rank-{failure['rank']}.json").write_text(json.dumps(failure))
    first = first_failure(tmp_path)
    assert first is not None
    assert (first.exit_code, first.message, first.hint) == (3, "rank 1: loss is not finite", "lower the rate")
