"""Entries of the promotion log, and the champion and previous champion that follow from them.

Promises: the standing is a pure function of the moves and of which versions still exist, whatever the order in which they are read; so
concurrent promotions end as they would in some sequential order. Does not store the log; see `promotion_log.py`.
"""

import json
import re
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from components.errors import BadInput

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_MAX_REASON_CHARS = 1000
_ENTRY_ID = re.compile(r"[0-9]{15}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Move:
    """One entry of the promotion log; entries are ordered by their ids."""

    id: str
    action: Literal["promote", "rollback"]
    version: str
    reason: str
    by: str
    at: str
    forced: bool = False
    checkpoint: str | None = None
    """Digest of the version's checkpoint, because a number alone identifies nothing; None in entries of earlier releases."""
    model_created_ms: int | None = None
    """When the registered model was made: a model's name is free again once the model is deleted. None in entries of earlier releases."""

    def text(self) -> str:
        """Return the entry as it is stored under its id."""
        facts = {key: value for key, value in asdict(self).items() if key != "id" and value is not None}
        return json.dumps(facts, sort_keys=True, ensure_ascii=False)

    def is_of_model(self, created_ms: int) -> bool:
        """Return whether the entry is about the registered model that was made then, not about an earlier one of the same name."""
        if self.model_created_ms is not None:
            return self.model_created_ms == created_ms
        return int(self.id.split("-")[0]) >= created_ms

    def is_of_version(self, checkpoint: str | None) -> bool:
        """Return whether the entry is about a version of this checkpoint, as far as it names one."""
        return self.checkpoint is None or self.checkpoint == checkpoint

    @classmethod
    def parse(cls, entry_id: str, text: str) -> "Move | None":
        """Read an entry; None if it is not one that `text` wrote: people and other programs can log to the same MLflow run."""
        try:
            move = cls(id=entry_id, **json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (move.version, move.reason, move.by, move.at, move.checkpoint or "")
        valid = _ENTRY_ID.fullmatch(entry_id) and move.action in ("promote", "rollback") and isinstance(move.forced, bool)
        valid = valid and isinstance(move.model_created_ms, int | None)
        return move if valid and all(isinstance(value, str) for value in texts) else None


@dataclass(frozen=True)
class Standing:
    """The versions that the aliases should point to."""

    champion: str | None
    previous: str | None


def standing_after(moves: Sequence[Move], existing: Collection[str] | None = None) -> Standing:
    """Return the standing after all `moves`, in the order of their ids: a promotion is pushed on a stack, a rollback pops it.

    A version that is not in `existing` (None: all are) was deleted and cannot be champion; the one promoted before it takes its place.
    """
    stack: list[str] = []
    for move in sorted(moves, key=lambda move: move.id):
        if move.action == "rollback":
            if len(stack) > 1 and stack[-1] == move.version:
                stack.pop()
        elif not stack or stack[-1] != move.version:
            stack.append(move.version)
    remaining = [version for version in stack if existing is None or version in existing]
    distinct = [version for index, version in enumerate(remaining) if index == 0 or remaining[index - 1] != version]
    return Standing(champion=distinct[-1] if distinct else None, previous=distinct[-2] if len(distinct) > 1 else None)


def next_move(
    moves: Sequence[Move],
    action: Literal["promote", "rollback"],
    version: str,
    *,
    reason: str,
    by: str,
    forced: bool,
    now_s: float,
    checkpoint: str | None = None,
    model_created_ms: int | None = None,
) -> Move:
    """Return a move that sorts after all `moves`, even if this clock is behind the one that wrote the last of them."""
    newest_ms = max((int(move.id.split("-")[0]) for move in moves), default=0)
    at_ms = max(int(now_s * 1000), newest_ms + 1)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
    entry_id = f"{at_ms:015d}-{uuid.uuid4().hex[:8]}"
    return Move(entry_id, action, version, reason, by, stamp, forced=forced, checkpoint=checkpoint, model_created_ms=model_created_ms)


def validate_reason(reason: str, action: str) -> str:
    """Return the reason on one line.

    Raises:
        BadInput: if it is empty, or longer than the log keeps.
    """
    text = " ".join(reason.split())
    if not text:
        raise BadInput(f"a {action} needs a reason", hint='add --reason "..."')
    if len(text) > _MAX_REASON_CHARS:
        raise BadInput(
            f"the reason has {len(text)} characters, the log keeps {_MAX_REASON_CHARS}", hint="shorten it, or link to a document"
        )
    return text
