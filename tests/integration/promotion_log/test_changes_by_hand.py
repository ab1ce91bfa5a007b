"""Aliases and versions that were changed by hand: what the log, the commands and a rollback say."""

from typing import Any

import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.promotion_logs import history, promoted, refusal
from celebdit_testing.recipes import DIGEST, tiny_recipe, trained_with
from celebdit_testing.registered import report_of

from components.errors import TemporaryFailure
from components.gate.config import GateConfig
from components.gate.gate import run as gate
from components.manifests import ChampionScores, CheckpointManifest
from components.registry.promotions.moves import Standing
from components.runtime.context import StepContext
from pipeline.services import Services


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
        for number in (3, 2):
            assert f"celebdit models promote --home {embedded.home} {number} --model {name}" in " ".join(shown.err.split())
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
