"""Twenty people who promote and roll back versions of one model at once, each with a client of their own."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from celebdit_testing.registered import bare_versions
from celebdit_testing.steps import step_context

from components.errors import BadInput
from components.registry.client import Registry
from components.registry.promotions.moves import standing_after
from components.registry.promotions.problems import problems_of
from components.runtime.context import StepContext

PROMOTERS, VERSIONS = 20, 5


def race_promoters(context: StepContext, name: str, folder: Path) -> None:
    """Let them race, and check that the registry is where some order of them would end, with every move in its log."""
    registry = bare_versions(context, name, VERSIONS)
    start = threading.Barrier(PROMOTERS)

    def promote(number: int) -> None:
        own = step_context("promote", folder / str(number), str(context.root), endpoint=None, mlflow_uri=context.settings.mlflow_uri)
        mine = Registry(own.tracking, name)
        start.wait()
        if number % 7 == 6:
            try:
                mine.rollback(reason=f"rollback {number}", by=f"person-{number}")
            except BadInput:  # nothing to go back to yet
                pass
        else:
            mine.promote(str(number % VERSIONS + 1), reason=f"promotion {number}", by=f"person-{number}")

    with ThreadPoolExecutor(PROMOTERS) as pool:
        list(pool.map(promote, range(PROMOTERS)))
    moves = registry.moves()
    reasons = {move.reason for move in moves}
    assert {f"promotion {number}" for number in range(PROMOTERS) if number % 7 != 6} <= reasons, "every move is in the log"
    assert len(moves) == len({move.id for move in moves})
    standing = standing_after(moves)
    aliases = registry.aliases()
    assert (aliases.get("champion"), aliases.get("previous")) == (standing.champion, standing.previous)
    state = registry.described_state()
    assert state is not None
    assert not state.open_moves
    assert {move.action for move in moves} <= {"promote", "rollback"}, "no move of a racing promoter looks like one by hand"
    assert problems_of(state) == []
