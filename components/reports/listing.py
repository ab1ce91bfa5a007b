"""Names in a sentence: the first of many, and how many more there are."""

from collections.abc import Sequence

_MOST = 20


def list_some(names: Sequence[str], *, most: int = _MOST) -> str:
    """Return `a, b and 7 more` of a list with more than `most` names, all of a shorter one."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
