"""Entries of the promotion log: what they say, and what is said where some are missing or from another model."""

from dataclasses import replace
from pathlib import Path

from celebdit_testing.promotion_logs import history, promoted, refusal, written
from celebdit_testing.registered import bare_versions, registry_context

from components.registry.client import Registry
from components.registry.promotions.moves import Standing
from components.runtime.context import StepContext
from pipeline.services import Endpoints


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
    assert f"the tag of {middle} was deleted" in history(registry)["text"]


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
