"""Promotion logs of earlier releases, which an experiment holds, are taken over once."""

import json
import time

import pytest
from celebdit_testing.promotion_logs import history, refusal, written
from celebdit_testing.registered import bare_versions
from mlflow.entities import Param

from components.errors import BadInput
from components.registry.client import Registry
from components.registry.promotions.moves import Standing
from components.runtime.context import StepContext
from pipeline.promotion_view import problem_lines


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
