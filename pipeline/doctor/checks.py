"""The result of a check, and the conversion of errors into failed checks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from components.errors import CelebditError

State = Literal["ok", "fail", "unknown"]


@dataclass(frozen=True)
class Check:
    """Result of one check; `found` and `fix` are also the keys of its JSON."""

    name: str
    state: State
    found: str
    fix: str | None = None


def run_check(name: str, check: Callable[[], Check | list[Check]]) -> list[Check]:
    """Run `check`; a `CelebditError` becomes a failed check."""
    try:
        result = check()
    except CelebditError as error:
        return [Check(name, "fail", error.message, error.hint)]
    return result if isinstance(result, list) else [result]
