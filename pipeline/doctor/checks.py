"""What a check says, and how an error becomes one that failed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from components.errors import CelebditError

State = Literal["ok", "fail", "unknown"]


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    state: State
    found: str
    fix: str | None = None


def checked(name: str, look: Callable[[], Check | list[Check]]) -> list[Check]:
    """Return what `look` found; an error that is meant for people is a failed check."""
    try:
        found = look()
    except CelebditError as error:
        return [Check(name, "fail", error.message, error.hint)]
    return found if isinstance(found, list) else [found]
