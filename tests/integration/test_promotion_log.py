"""The promotion log of a registered model and its aliases, on a real MLflow server: what happens when they do not agree."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.recipes import DIGEST, tiny_recipe, trained_with
from celebdit_testing.registered import bare_versions, registry_context, report_of
from mlflow.entities import Param

from components.errors import BadInput, TemporaryFailure
from components.gate.config import GateConfig
from components.gate.gate import run as gate
from components.manifests import ChampionScores, CheckpointManifest
from components.registry.client import Registry
from components.registry.promotions.changes import PromotionChanges
from components.registry.promotions.log import PromotionLog
from components.registry.promotions.moves import Move, Standing
from components.runtime.context import StepContext
from pipeline.promotion_view import history_json, history_lines, problem_lines
from pipeline.services import Endpoints, Services


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return registry_context(endpoints, tmp_path)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of its own for each test."""
    return str(request.node.name).removeprefix("test_").replace("[", "-").replace("]", "")[:100]


def promoted(context: StepContext, name: str, *versions: str, count: int = 3) -> Registry:
    registry = bare_versions(context, name, count)
    for version in versions:
        registry.promote(version, reason=f"promotion of {version}", by="ann")
    return registry


def history(registry: Registry) -> dict[str, Any]:
    """What `models history --json` prints, and as `text` what it shows."""
    state = registry.described_state(take_over_as="reader")
    assert state is not None
    return {**history_json(state), "text": "\n".join([*history_lines(state), *problem_lines(state)])}


def refusal(registry: Registry) -> str:
    """What a rollback says that is refused, which must leave everything as it is."""
    before = written(registry)
    with pytest.raises(BadInput) as refused:
        registry.rollback(reason="dark corners", by="ann")
    assert written(registry) == before
    return f"{refused.value.message}\n{refused.value.hint}"


def written(registry: Registry) -> tuple[dict[str, str], dict[str, str]]:
    model = registry.tracking.client.get_registered_model(registry.name)
    return {key: value for key, value in model.tags.items() if key.startswith("celebdit.move.")}, dict(model.aliases)


def old_log(context: StepContext, name: str, *versions: str, experiment: str = "elsewhere") -> str:
    """Write the promotion log of an earlier release, in an experiment, and return its run's id."""
    client = context.tracking.client
    run = client.create_run(
        client.create_experiment(f"{experiment} {name}"), tags={"celebdit.kind": "registry-log", "celebdit.model": name}
    )
    facts = {"action": "promote", "by": "ann", "at": "2025-01-01T00:00:00Z", "forced": False}
    entries = [json.dumps({**facts, "version": version, "reason": f"old {version}"}) for version in versions]
    now_ms = int(time.time() * 1000)
    client.log_batch(run.info.run_id, params=[Param(f"{now_ms + i:015d}-0123abcd", text) for i, text in enumerate(entries)])
    return str(run.info.run_id)


def made_by_an_earlier_release(context: StepContext, name: str, *, champion: str, previous: str | None) -> Registry:
    client = context.tracking.client
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(name, source="s3://bucket/nowhere", tags={"gate.decision": "pass"})
    for alias, version in {"champion": champion, "previous": previous}.items():
        if version is not None:
            client.set_registered_model_alias(name, alias, version)
    return Registry(context.tracking, name)


def test_an_entry_says_who_what_when_why_from_and_to(context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1", "2")
    first, second = history(registry)["moves"]
    assert (second["version"], second["from"], second["to"], second["by"], second["reason"]) == ("2", "1", "2", "ann", "promotion of 2")
    created_ms = context.tracking.client.get_registered_model(name).creation_timestamp
    assert (first["from"], first["to"], first["model_created_ms"]) == (None, "1", created_ms)
    assert second["version_created_ms"] == context.tracking.client.get_model_version(name, "2").creation_timestamp
    assert {"id", "at", "checkpoint"} <= set(second)
    tags, _ = written(registry)
    assert {f"celebdit.move.{move['id']}" for move in (first, second)} <= set(tags)
    assert max(map(len, tags)) <= 250
    assert registry.rollback(reason="no", by="bob") == Standing("1", None)
    last = history(registry)["moves"][-1]
    assert (last["action"], last["version"], last["from"], last["to"], last["outcome"]) == ("rollback", "2", "2", "1", "done")


def test_the_commands_say_what_was_moved_by_hand_and_what_to_type(
    context: StepContext, name: str, embedded: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(context, name, "1", "2")
    context.tracking.client.set_registered_model_alias(name, "champion", "3")

    def models(*arguments: str) -> Any:
        return celebdit_here("models", *arguments, "--model", name, "--json", home=embedded.home, capture=capsys)

    for command in (("history",), ("list",), ("show", "3")):
        shown = models(*command)
        assert "champion is version 3, moved by hand; by the log it is version 2" in shown.err
        assert f"celebdit models promote 3 --model {name}" in shown.err
        assert f"celebdit models promote 2 --model {name}" in shown.err
        assert shown.json["problems"][0]["by_hand"]
    refused = models("rollback", "--reason", "x")
    assert refused.code == 2
    assert "nothing was rolled back" in refused.err
    done = models("promote", "1", "--reason", "y")
    assert (done.code, done.json) == (0, {"model": name, "champion": "1", "previous": "3"})
    assert "moved by hand" in done.err


def test_a_move_by_hand_is_recorded_and_no_rollback_follows_it(context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1", "2")
    context.tracking.client.set_registered_model_alias(name, "champion", "3")
    moved = history(registry)
    assert "by hand   version 3  champion 2 -> 3" in moved["text"]
    assert [(move["action"], move["version"], move["from"], move["to"]) for move in moved["moves"]][2:] == [("by-hand", "3", "2", "3")]
    assert "celebdit models promote 3" in refusal(registry)
    notes: list[str] = []
    assert registry.promote("1", reason="y", by="bob", note=notes.append) == Standing("1", "3")
    assert "moved by hand" in notes[0]
    after = history(registry)
    assert [(move["action"], move["from"], move["to"]) for move in after["moves"]] == [
        ("promote", None, "1"), ("promote", "1", "2"), ("by-hand", "2", "3"), ("promote", "3", "1"),
    ]  # fmt: skip
    assert after["problems"] == []
    assert registry.rollback(reason="z", by="bob") == Standing("3", "2")


@pytest.mark.parametrize("alias", ["champion", "previous"])
def test_an_alias_removed_by_hand_is_said(alias: str, context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1", "2")
    context.tracking.client.delete_registered_model_alias(name, alias)
    (problem,) = history(registry)["problems"]
    assert "by hand" in problem["problem"]
    assert "celebdit models promote" in refusal(registry)
    assert registry.promote("3", reason="y", by="bob") == Standing("3", "2")
    after = history(registry)
    assert after["problems"] == after["warnings"] == []


@pytest.mark.parametrize(("deleted", "typed", "previous"), [("3", "2", "1"), ("2", "1", "3")])
def test_a_deleted_version_is_said_and_nothing_takes_its_place(
    deleted: str, typed: str, previous: str, context: StepContext, name: str
) -> None:
    registry = promoted(context, name, "1", "2", "3")
    context.tracking.client.delete_model_version(name, deleted)
    text = refusal(registry)
    assert f"version {deleted}" in text
    assert "was deleted" in text
    assert f"celebdit models promote {typed} --model {name}" in text
    assert "was deleted" in history(registry)["text"]
    assert registry.promote(typed, reason="y", by="bob") == Standing(typed, previous)
    assert history(registry)["problems"] == []


def test_a_version_whose_checkpoint_was_exchanged_is_not_the_champion(context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1")
    client = context.tracking.client
    client.set_model_version_tag(name, "2", "checkpoint.digest", "c" * 64)
    registry.promote("2", reason="r", by="ann")
    client.set_model_version_tag(name, "2", "checkpoint.digest", "d" * 64)
    assert "whose checkpoint is not the one that was promoted" in refusal(registry)


def test_a_log_that_was_deleted_is_said_and_previous_is_the_champion_before(context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1", "2")
    for key in written(registry)[0]:
        context.tracking.client.delete_registered_model_tag(name, key)
    text = history(registry)["text"]
    assert "champion is version 2 and no entry of the promotion log says so" in text
    assert "celebdit models promote 2" in text
    refusal(registry)
    assert registry.promote("3", reason="y", by="bob") == Standing("3", "2")
    assert [move["action"] for move in history(registry)["moves"]] == ["start", "start", "promote"]
    assert registry.rollback(reason="z", by="bob") == Standing("2", "1")


def test_an_entry_that_was_deleted_is_said(context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1", "2", "3")
    middle = registry.moves()[1].id
    context.tracking.client.delete_registered_model_tag(name, f"celebdit.move.{middle}")
    assert f"somebody deleted the tag of {middle}" in history(registry)["text"]


def test_a_log_that_was_copied_from_another_model_is_not_believed(context: StepContext, name: str) -> None:
    source, registry = promoted(context, f"{name}-1", "1", "2"), bare_versions(context, name, 2)
    for key, value in written(source)[0].items():
        context.tracking.client.set_registered_model_tag(name, key, value)
    copied = history(registry)
    assert copied["moves"] == []
    assert "are ignored" in copied["text"]
    assert registry.promote("1", reason="x", by="bob") == Standing("1", None)


def test_promoters_with_different_experiments_share_one_log(context: StepContext, name: str, endpoints: Endpoints, tmp_path: Path) -> None:
    registry = promoted(context, name, "1")
    elsewhere = replace(registry_context(endpoints, tmp_path / "b").settings, experiment="another")
    other = Registry(StepContext(settings=elsewhere, events=context.events).tracking, name)
    assert other.promote("2", reason="r", by="bob") == Standing("2", "1")
    assert registry.promote("3", reason="r", by="ann") == Standing("3", "2")
    assert other.rollback(reason="r", by="bob") == Standing("2", "1")
    assert context.tracking.client.get_experiment_by_name("another") is None, "the log needs no experiment"


@pytest.mark.parametrize("deleted", [False, True])
def test_the_log_of_an_earlier_release_is_taken_over_once(deleted: bool, context: StepContext, name: str) -> None:
    registry = made_by_an_earlier_release(context, name, champion="2", previous="1")
    run_id = old_log(context, name, "1", "2")
    if deleted:
        context.tracking.client.delete_run(run_id)
    state = registry.described_state()
    assert state is not None
    assert problem_lines(state) == []
    assert written(registry)[0] == {}, "only the history and a promotion write"
    first = history(registry)
    assert "2 entries of the log of an earlier release taken over" in first["text"]
    assert "old 2" in first["text"]
    tags = written(registry)
    old_log(context, name, "3", experiment="forged later")
    assert history(registry) == first
    assert written(registry) == tags
    assert registry.rollback(reason="x", by="bob") == Standing("1", None)


def test_an_entry_that_was_never_allowed_makes_no_champion(context: StepContext, name: str) -> None:
    """A user with rights on the experiment alone could write the log of an earlier release, and was refused the alias."""
    registry = made_by_an_earlier_release(context, name, champion="1", previous=None)
    old_log(context, name, "1", "2")
    with pytest.raises(BadInput, match="did not say that version 1 is the champion"):
        registry.rollback(reason="x", by="bob")
    assert registry.aliases() == {"champion": "1"}
    assert registry.promote("3", reason="y", by="bob") == Standing("3", "1")
    assert registry.rollback(reason="z", by="bob") == Standing("1", None)
    assert "no earlier champion" in refusal(registry), "version 2 was never champion"


def test_a_model_that_this_release_made_looks_for_no_log_elsewhere(context: StepContext, name: str) -> None:
    registry = bare_versions(context, name, 2)
    old_log(context, name, "2")
    assert history(registry)["moves"] == []


def killed(context: StepContext, name: str, method: str, version: str) -> None:
    """Make a promotion that dies at a call of its log."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromotionLog, method, die)
        with pytest.raises(KeyboardInterrupt):
            Registry(context.tracking, name).promote(version, reason="killed", by="bob")


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = PromotionChanges.__init__.__kwdefaults__
    assert "quiet_s" in defaults
    monkeypatch.setattr(PromotionChanges.__init__, "__kwdefaults__", {**defaults, "quiet_s": 0.3})


@pytest.mark.usefixtures("short_wait")
@pytest.mark.parametrize(("at", "outcome", "previous"), [("move_alias", "interrupted", "1"), ("finish", "done", "2")])
def test_a_killed_promotion_is_said_and_marked_by_what_the_alias_says(
    at: str, outcome: str, previous: str, context: StepContext, name: str
) -> None:
    registry = promoted(context, name, "1")
    killed(context, name, at, "2")
    assert registry.aliases()["champion"] == ("1" if at == "move_alias" else "2")
    shown = history(registry)
    assert shown["moves"][-1]["outcome"] is None
    assert "the promotion of version 2 by bob" in shown["text"]
    assert "is in progress or was interrupted" in shown["text"]
    assert "the promotion of version 2 by bob" in refusal(registry)
    notes: list[str] = []
    assert registry.promote("3", reason="y", by="ann", note=notes.append) == Standing("3", previous)
    assert any(f"it is recorded as {outcome}" in note for note in notes)
    after = history(registry)
    assert [move["outcome"] for move in after["moves"]] == ["done", outcome, "done"]
    assert after["problems"] == []


@pytest.mark.usefixtures("short_wait")
def test_a_killed_rollback_is_said_and_marked_too(context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromotionLog, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            registry.rollback(reason="killed", by="bob")
    assert registry.aliases() == {"champion": "1"}
    assert "the rollback of version 2 by bob" in refusal(registry)
    assert registry.promote("3", reason="y", by="ann") == Standing("3", "1")
    assert [move["outcome"] for move in history(registry)["moves"]] == ["done"] * 4


def test_a_promoter_that_was_taken_for_killed_changes_nothing_more(context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1")
    move_alias = PromotionLog.move_alias

    def overtaken(log: PromotionLog, alias: str, version: str | None) -> None:
        state = registry.described_state()
        assert state is not None
        (move,) = state.open_moves
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PromotionLog, "move_alias", move_alias)
            log.finish(move, "interrupted")
            registry.promote("3", reason="overtakes", by="ann")
        raise TemporaryFailure("a slow request")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromotionLog, "move_alias", overtaken)
        with pytest.raises(TemporaryFailure, match="a slow request"):
            Registry(context.tracking, name).promote("2", reason="slow", by="bob")
    assert registry.aliases() == {"champion": "3", "previous": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromotionLog, "append", lambda log, move: None)  # as if somebody had removed it
        with pytest.raises(TemporaryFailure, match="took the promotion of version 2"):
            registry.promote("2", reason="slow", by="bob")
    assert registry.aliases() == {"champion": "3", "previous": "1"}


@pytest.mark.parametrize("refused_alias", ["previous", "champion"])
def test_a_half_refused_change_leaves_nothing(refused_alias: str, context: StepContext, name: str) -> None:
    """MLflow refuses to point an alias to a version that is not there."""
    registry = promoted(context, name, "1", "2")
    before, move_alias = written(registry), PromotionLog.move_alias
    moved: list[str] = []

    def to_missing(log: PromotionLog, alias: str, version: str | None) -> None:
        refuse = alias == refused_alias and alias not in moved
        moved.append(alias)
        move_alias(log, alias, "99" if refuse else version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromotionLog, "move_alias", to_missing)
        with pytest.raises(BadInput, match=r"not found.*nothing was changed"):
            registry.promote("3", reason="r", by="bob")
    assert refused_alias in moved
    assert written(registry) == before


def test_a_version_of_a_model_that_is_made_again_is_not_the_one_whose_gate_passed(context: StepContext, name: str) -> None:
    registry = promoted(context, name)
    quiet_state = PromotionChanges._quiet_state

    def late(changes: PromotionChanges) -> Any:
        context.tracking.client.delete_registered_model(name)
        bare_versions(context, name, 1, gate="fail")
        return quiet_state(changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromotionChanges, "_quiet_state", late)
        with pytest.raises(BadInput, match="not the one that was looked at any more"):
            registry.promote("1", reason="r", by="bob")
    assert registry.aliases() == {}


def test_the_gate_tells_a_champion_from_another_one_of_its_number(context: StepContext, name: str) -> None:
    registry = promoted(context, name)
    client = context.tracking.client
    client.set_model_version_tag(name, "1", "checkpoint.digest", "d" * 64)
    registry.promote("1", reason="r", by="ann")
    checkpoint = CheckpointManifest(
        run_key="d" * 16, uri="s3://b/x", digest="e" * 64, step=7, dataset_digest=DIGEST, recipe=trained_with(tiny_recipe())
    )
    report = report_of(checkpoint).model_copy(update={"champion": ChampionScores(version="1", checkpoint_digest="c" * 64)})
    with pytest.raises(TemporaryFailure, match=r"version 1 of checkpoint c{12} when .* and is version 1 of checkpoint d{12}"):
        gate(report, GateConfig(), name, context)


def test_a_model_that_is_made_again_meanwhile_gets_no_entry(context: StepContext, name: str) -> None:
    registry = promoted(context, name, "1", "2")
    append = PromotionLog.append

    def late(log: PromotionLog, move: Move) -> None:
        context.tracking.client.delete_registered_model(name)
        bare_versions(context, name, 3)
        append(log, move)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromotionLog, "append", late)
        with pytest.raises(BadInput, match="was deleted meanwhile"):
            registry.promote("3", reason="r", by="bob")
    tags, aliases = written(registry)
    assert aliases == {}
    assert len(tags) == 1, "its start alone"
