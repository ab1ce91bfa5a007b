"""Aliases follow from the promotion log, and every further attempt to move them is in the log."""

import logging

import pytest

from components.errors import TemporaryFailure, TrackingRefused
from components.registry.aliases import settle_aliases
from components.registry.promotions.moves import CHAMPION, PREVIOUS, Standing
from components.system.retry import RetryPolicy

STANDING = Standing(champion="2", previous="1")


class Aliases(dict[str, str]):
    """Aliases that a concurrent caller changes back, or MLflow refuses to move, for the first `failures` moves of the champion."""

    def __init__(self, failures: int, *, refuses: bool = False) -> None:
        super().__init__({CHAMPION: "1"})
        self.failures, self.refuses = failures, refuses

    def move(self, alias: str, version: str | None) -> None:
        if alias == CHAMPION and self.failures:
            self.failures -= 1
            if self.refuses:
                raise TrackingRefused("UNIQUE constraint failed")
            version = "3"
        if version is None:
            del self[alias]
        else:
            self[alias] = version


def settle(aliases: Aliases, deadline_s: float = 10.0) -> Standing:
    policy = RetryPolicy(deadline_s=deadline_s, first_pause_s=0.01, longest_pause_s=0.01)
    return settle_aliases("faces", standing=lambda: STANDING, aliases=lambda: aliases, move=aliases.move, policy=policy)


@pytest.mark.parametrize(("refuses", "cause"), [(False, "champion is 3, not 2"), (True, "UNIQUE constraint failed; champion is 1, not 2")])
def test_each_further_attempt_is_a_warning_with_pause_deadline_and_cause(
    refuses: bool, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    aliases = Aliases(2, refuses=refuses)
    assert settle(aliases) == STANDING
    assert aliases == {CHAMPION: "2", PREVIOUS: "1"}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    for attempt, record in enumerate(caplog.records, start=1):
        text = record.getMessage()
        assert f"updating the aliases of 'faces' failed, attempt {attempt}: {cause}; next attempt in" in text
        assert "giving up in 10 s" in text


def test_an_undisturbed_move_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert settle(Aliases(0)) == STANDING
    assert caplog.records == []


def test_aliases_that_keep_changing_are_a_temporary_failure() -> None:
    with pytest.raises(TemporaryFailure, match="keep changing concurrently"):
        settle(Aliases(10**6), deadline_s=0.05)
