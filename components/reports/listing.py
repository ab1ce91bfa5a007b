"""Names and numbers in a sentence: some of many, and how many there are. A line of an error has room for a few of thousands of steps."""

from collections.abc import Iterable

_MOST = 20
_END = 5


def list_some(names: Iterable[object], *, most: int = _MOST, separator: str = ", ") -> str:
    """Return `a, b and 7 more` of a list with more than `most` names, all of a shorter one."""
    texts = [str(name) for name in names]
    if len(texts) <= most:
        return separator.join(texts)
    return f"{separator.join(texts[:most])} and {len(texts) - most} more"


def list_steps(steps: Iterable[int]) -> str:
    """Return steps in their order, of many the first and the last ones: `10, 20, 30, ..., 990, 1000 (100 steps)`; `none` of none."""
    texts = [str(step) for step in sorted(set(steps))]
    if len(texts) <= _MOST:
        return ", ".join(texts) or "none"
    return f"{', '.join([*texts[:_END], '...', *texts[-_END:]])} ({len(texts)} steps)"
