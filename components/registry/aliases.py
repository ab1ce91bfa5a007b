"""Moves the aliases of a model to the versions that follow from its promotion log.

Promises: concurrent callers end with the aliases of the log, whoever is last. `champion` is moved last, so that what cannot be moved leaves
it where it is. Each further attempt is logged as a warning.
"""

import logging
from collections.abc import Callable, Mapping

from components.errors import TemporaryFailure, TrackingRefused, first_line
from components.registry.promotions.moves import CHAMPION, PREVIOUS, Standing
from components.system.retry import RetryPolicy, retry

_LOG = logging.getLogger(__name__)
_POLICY = RetryPolicy(deadline_s=60.0, first_pause_s=0.05, longest_pause_s=0.2)


class _AliasesChanged(Exception):
    """The aliases were moved, and point elsewhere again or could not be moved."""


def settle_aliases(
    model: str,
    *,
    standing: Callable[[], Standing],
    aliases: Callable[[], Mapping[str, str]],
    move: Callable[[str, str | None], None],
    policy: RetryPolicy = _POLICY,
) -> Standing:
    """Move `champion` and `previous` until they are seen to follow from the log, and return the standing.

    `standing` and `aliases` read the registry, `move` points an alias to a version or deletes it.

    Raises:
        TemporaryFailure: if they keep changing until the deadline of `policy`.
    """

    def settle() -> Standing:
        target, causes = standing(), []
        for alias, version in _differences(target, aliases()).items():
            try:
                move(alias, version)
            except TrackingRefused as error:  # it refuses the second of two callers that create an alias at once (its database)
                causes.append(first_line(error))
        target, present = standing(), aliases()
        causes += [f"{alias} is {present.get(alias)}, not {version}" for alias, version in _differences(target, present).items()]
        if _differences(target, present):
            raise _AliasesChanged("; ".join(causes))
        return target

    try:
        return retry(
            settle,
            what=f"updating the aliases of {model!r}",
            log=_LOG,
            policy=policy,
            is_temporary=lambda error: isinstance(error, _AliasesChanged),
        )
    except _AliasesChanged as error:
        raise TemporaryFailure(
            f"could not update the aliases of {model!r}: they keep changing concurrently",
            hint=f"celebdit models history --model {model} shows whether the change took effect",
        ) from error


def _differences(standing: Standing, aliases: Mapping[str, str]) -> dict[str, str | None]:
    """Return the version that each alias should point to, for those that do not."""
    targets = {PREVIOUS: standing.previous, CHAMPION: standing.champion}
    return {alias: version for alias, version in targets.items() if aliases.get(alias) != version}
