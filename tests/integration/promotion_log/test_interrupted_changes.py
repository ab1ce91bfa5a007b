"""Promotions and rollbacks that are killed, refused or overtaken midway."""

from typing import Any

import pytest
from celebdit_testing.promotion_logs import history, promoted, refusal, written
from celebdit_testing.registered import bare_versions

from components.errors import BadInput, TemporaryFailure
from components.registry.client import Registry
from components.registry.promotions.changes import PromotionChanges
from components.registry.promotions.log import PromotionLog
from components.registry.promotions.moves import Move, Standing
from components.runtime.context import StepContext


def killed(context: StepContext, name: str, method: str, version: str) -> None:
    """Make a promotion that dies at a call of its log."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromotionLog, method, die)
        with pytest.raises(KeyboardInterrupt):
            Registry(context.tracking, name).promote(version, reason="killed", by="bob")


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
