"""Promotions on a real MLflow server: racing and dying promoters, a log that stays, the commands, and who hears of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.http_server import Handler, serving
from celebdit_testing.promoters import race_promoters
from celebdit_testing.registered import bare_versions, registry_context
from celebdit_testing.steps import step_context

from components.errors import BadInput, GateFailed, TrackingUnavailable
from components.registry.client import Registry
from components.registry.promotions.moves import Standing
from components.runtime.context import StepContext
from components.system.ports import free_port
from pipeline.services import Endpoints, Services


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return registry_context(endpoints, tmp_path)


def test_twenty_racing_promoters_end_where_some_order_of_them_would(context: StepContext, tmp_path: Path) -> None:
    race_promoters(context, "contested", tmp_path)


def test_no_entry_replaces_another_and_a_failed_gate_needs_force(context: StepContext) -> None:
    registry = bare_versions(context, "strict", 1, gate="fail")
    with pytest.raises(GateFailed, match="gate decision fail"):
        registry.promote("1", reason="please", by="a")
    with pytest.raises(BadInput, match="no version '9'"):
        registry.promote("9", reason="please", by="a")
    assert registry.aliases() == {}
    registry.promote("1", reason="we know", by="a", force=True)
    (move,) = registry.moves()
    assert move.forced
    registry.promote("1", reason="we still know", by="a", force=True)
    assert [entry.reason for entry in registry.moves()] == ["we know", "we still know"], "an entry has a key of its own"
    with pytest.raises(BadInput, match="no earlier champion"):
        registry.rollback(reason="oops", by="a")


def test_one_version_is_read_without_the_others_and_a_wrong_number_lists_some(
    context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = bare_versions(context, "many", 23)
    for number in ("24", "0", "007", "9" * 30, "2\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT TWO}"):
        with pytest.raises(BadInput, match=f"no version '{number}'") as refused:
            registry.version(number)
        assert str(refused.value.hint).startswith("it has 23, 22, 21, ")
        assert str(refused.value.hint).endswith(", 4 and 3 more")
    monkeypatch.setattr(registry, "versions", None)
    assert str(registry.version("7").version) == "7"
    assert str(registry.resolve("7").version) == "7"


def test_a_model_that_was_deleted_and_made_again_inherits_no_promotion(context: StepContext) -> None:
    registry = bare_versions(context, "again", 2)
    registry.promote("1", reason="good", by="a")
    registry.promote("2", reason="better", by="a")
    assert [move.version for move in registry.moves()] == ["1", "2"]
    context.tracking.client.delete_registered_model("again")
    assert registry.moves() == []
    registry = bare_versions(context, "again", 2, gate="fail")
    assert registry.moves() == []
    third = context.tracking.client.create_model_version("again", source="s3://bucket/nowhere", tags={"gate.decision": "pass"})
    assert registry.promote(third.version, reason="first of the new model", by="b") == Standing("3", None)
    with pytest.raises(BadInput, match="no earlier champion"):
        registry.rollback(reason="dark corners", by="b")
    assert registry.aliases() == {"champion": "3"}


def test_an_unavailable_mlflow_is_reported_as_such(tmp_path: Path) -> None:
    unreachable = step_context("models", tmp_path, "s3://bucket/x", endpoint=None, mlflow_uri=f"http://127.0.0.1:{free_port()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingUnavailable, match="MLflow at"):
            Registry(unreachable.tracking, "faces").versions()


@pytest.fixture
def hook() -> Iterator[tuple[str, list[Any]]]:
    notifications: list[Any] = []

    class HookHandler(Handler):
        def do_POST(self) -> None:  # noqa: N802 - named by the base class
            notifications.append(json.loads(self.content()))
            self.answer(200 if self.path == "/good" else 500)

    with serving(HookHandler) as address:
        yield address, notifications


def test_the_commands_of_a_person_who_promotes(
    context: StepContext, embedded: Services, hook: tuple[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    bare_versions(context, "people", 2)
    url, notifications = hook

    def models(*arguments: str, **environment: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return celebdit_here("models", *arguments, "--model", "people", home=embedded.home, capture=capsys)

    promoted = models("promote", "1", "--reason", "first", CELEBDIT_WEBHOOK_URL=f"{url}/good")
    assert promoted.code == 0, promoted.err
    assert notifications[0]["action"] == "promote"
    assert (notifications[0]["model"], notifications[0]["champion"], notifications[0]["reason"]) == ("people", "1", "first")
    loud = models("promote", "2", "--reason", "second", "--json", CELEBDIT_WEBHOOK_URL=f"{url}/secret-path")
    assert loud.code == 0
    assert loud.json == {"model": "people", "champion": "2", "previous": "1"}
    assert "the webhook was not notified: it answered 500" in loud.err
    assert "secret-path" not in loud.err + loud.out
    back = models("rollback", "--reason", "no good", "--json")
    assert back.json == {"model": "people", "champion": "1", "previous": None}
    description = models("show", "champion", "--json").json
    assert description["version"] == "1"
    assert [move["action"] for move in description["moves"]] == ["promote"]
    assert len(models("history", "--json").json["moves"]) == 3
    for arguments, message in (
        (("promote", "1"), "Missing option '--reason'"),
        (("show", "nobody"), "no alias 'nobody'"),
        (("promote", "1", "--reason", " "), "needs a reason"),
    ):
        wrong = models(*arguments)
        assert wrong.code == 2
        assert message in wrong.err
        assert "Traceback" not in wrong.err
    assert "not an http or https address" in models("rollback", "--reason", "x", CELEBDIT_WEBHOOK_URL="file:///etc/passwd").err
