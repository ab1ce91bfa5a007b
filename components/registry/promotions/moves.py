"""Entries of the promotion log, and the champion and previous champion that follow from them.

Promises: the standing is a pure function of the moves and of which versions still exist, whatever the order in which they are read; so
concurrent promotions end as they would in some sequential order. Does not store the log; see `log.py`.
"""

import json
import re
import time
import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

from components.errors import BadInput

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ENTRY_PREFIX = "celebdit.move."
"""Of the key of an entry, before its id."""
FORMAT = 2
"""Of an entry. Entries of earlier releases have none; they were parameters of an MLflow run."""
MAX_TEXT_CHARS = 5000
"""Of an entry: the width of MLflow's column for a tag of a registered model, which PostgreSQL keeps and SQLite does not know."""
_MAX_REASON_CHARS = 1000
_MAX_NAME_CHARS = 200
_ENTRY_ID = re.compile(r"[0-9]{15}-[0-9a-f]{8}")
_LAST_ID_MS = 10**15 - 1

Action = Literal["promote", "rollback", "by-hand", "start"]


@dataclass(frozen=True)
class VersionIdentity:
    """What tells a version from another one that has, or had, its number."""

    checkpoint: str | None
    created_ms: int | None = None


@dataclass(frozen=True)
class Move:
    """One entry of the promotion log; entries are ordered by their ids.

    A `start` is what the alias pointed to when the log began, a `by-hand` what it pointed to although no entry says so.
    """

    id: str
    action: Action
    version: str | None
    """The version that was promoted, rolled back, or found under the alias; None where the alias was not set."""
    reason: str
    by: str
    at: str
    forced: bool = False
    checkpoint: str | None = None
    """Digest of the version's checkpoint, because a number alone identifies nothing; None if the version has none."""
    version_created_ms: int | None = None
    model_created_ms: int | None = None
    """When the registered model was made: a model's name is free again once the model is deleted. None in entries of earlier releases."""
    from_version: str | None = None
    """The champion before, as the writer saw it."""
    to_version: str | None = None
    """The champion after."""
    after: str | None = None
    """Id of the newest finished entry that the writer saw."""
    run_id: str | None = None
    """The MLflow run that an entry of an earlier release was taken over from; such an entry is shown and decides nothing."""
    agreed: bool = True
    """Of a `start`: whether the log of an earlier release said the same as the aliases."""

    def text(self) -> str:
        """Return the entry as it is stored under its id."""
        facts = {_STORED.get(item.name, item.name): getattr(self, item.name) for item in fields(self) if item.name != "id"}
        kept = {key: value for key, value in facts.items() if value is not None and (key, value) != ("agreed", True)}
        return json.dumps({"format": FORMAT, **kept}, sort_keys=True, ensure_ascii=False)

    def is_of_model(self, created_ms: int) -> bool:
        """Return whether the entry is about the registered model that was made then, not about an earlier one of the same name."""
        if self.model_created_ms is not None:
            return self.model_created_ms == created_ms
        return self.id == START_ID or int(self.id.split("-")[0]) >= created_ms

    def is_of(self, version: VersionIdentity) -> bool:
        """Return whether the entry is about this version, as far as both say what they are."""
        pairs = ((self.checkpoint, version.checkpoint), (self.version_created_ms, version.created_ms))
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)

    @classmethod
    def parse(cls, entry_id: str, text: str) -> "Move | None":
        """Read an entry; None if it is not one that `text` wrote: people and other programs can write beside it.

        Raises:
            BadInput: if a later release wrote it.
        """
        try:
            facts = json.loads(text)
            written = facts.pop("format", 1)
            if isinstance(written, int) and written > FORMAT:
                raise BadInput(
                    f"the promotion log has an entry of format {written}, this release reads up to {FORMAT}",
                    hint=f"use the newer release; if none wrote it, delete the tag {ENTRY_PREFIX}{entry_id} of the model",
                )
            move = cls(id=entry_id, **{"version": None, **{_FIELDS.get(key, key): value for key, value in facts.items()}})
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        return move if move._is_valid() else None

    def _is_valid(self) -> bool:
        texts = (self.reason, self.by, self.at)
        optional = (self.version, self.checkpoint, self.from_version, self.to_version, self.after, self.run_id)
        return (
            _ENTRY_ID.fullmatch(self.id) is not None
            and self.action in get_args(Action)
            and (self.version is not None or self.action in ("by-hand", "start"))
            and all(isinstance(value, str) for value in texts)
            and all(value is None or isinstance(value, str) for value in optional)
            and all(isinstance(value, int | None) for value in (self.version_created_ms, self.model_created_ms))
            and isinstance(self.forced, bool)
            and isinstance(self.agreed, bool)
        )


_STORED = {"from_version": "from", "to_version": "to"}
_FIELDS = {stored: name for name, stored in _STORED.items()}
START_ID, START_PREVIOUS_ID = "000000000000001-00000000", "000000000000000-00000000"
"""Ids of the two entries with which a log begins: what `champion` and what `previous` pointed to."""


@dataclass(frozen=True)
class Standing:
    """The versions that the aliases should point to."""

    champion: str | None
    previous: str | None


def order(moves: Iterable[Move]) -> list[Move]:
    """Return moves oldest first; those of an earlier release's log come before the start of this one."""
    return sorted(moves, key=lambda move: (move.run_id is None, move.id))


def stack_after(moves: Iterable[Move]) -> list[Move]:
    """Return the moves that made the champion and those before it, the champion's last: a rollback takes back what it returns from."""
    stack: list[Move] = []
    for move in order(moves):
        if move.run_id is not None or move.version is None:
            continue
        if move.action == "rollback":
            if len(stack) > 1 and stack[-1].version == move.version:
                below = [index for index, earlier in enumerate(stack[:-1]) if earlier.version == move.to_version]
                del stack[(below[-1] + 1 if below else len(stack) - 1) :]
        elif not stack or stack[-1].version != move.version:
            stack.append(move)
    return stack


def exists(move: Move, versions: Mapping[str, VersionIdentity] | None) -> bool:
    """Return whether the version of `move` is among `versions` (None: all are) and is still the same one."""
    return versions is None or (move.version is not None and move.version in versions and move.is_of(versions[move.version]))


def standing_after(moves: Iterable[Move], versions: Mapping[str, VersionIdentity] | None = None) -> Standing:
    """Return the standing after all `moves`, in the order of their ids.

    A champion that is not among `versions` (None: all are) has no successor; a previous champion that is not gives way to the one before.
    """
    stack = stack_after(moves)
    if not stack:
        return Standing(champion=None, previous=None)
    champion = stack[-1]
    earlier = (move.version for move in reversed(stack[:-1]) if move.version != champion.version and exists(move, versions))
    return Standing(champion=champion.version if exists(champion, versions) else None, previous=next(earlier, None))


def new_id(moves: Sequence[Move], now_s: float) -> str:
    """Return an id that sorts after all `moves`, even if this clock is behind the one that wrote the last of them.

    Raises:
        BadInput: if none does.
    """
    newest = max((move.id for move in moves), default=f"{0:015d}-")
    return id_after(newest, uuid.uuid4().hex[:8], now_s=now_s)


def id_after(newest: str, suffix: str, *, now_s: float = 0.0) -> str:
    """Return the id of this time, or the first one after the id `newest`, whichever is later.

    Raises:
        BadInput: if the log has an entry with the last id that there is.
    """
    newest_ms, _, _ = newest.partition("-")
    id_ms = max(int(now_s * 1000), int(newest_ms) + 1)
    if id_ms > _LAST_ID_MS:
        raise BadInput(
            f"the promotion log has the entry {newest}, after which there can be none; the champion was not changed",
            hint=f"celebdit did not write it: delete the tag {ENTRY_PREFIX}{newest} of the registered model in MLflow",
        )
    return f"{id_ms:015d}-{suffix}"


def utc(now_s: float) -> str:
    """Return a time as entries keep it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))


def clean_text(text: str, max_characters: int = _MAX_REASON_CHARS) -> str:
    """Return a text as entries keep it: without control characters and halves of characters, which databases refuse."""
    return "".join("?" if unicodedata.category(character) in ("Cc", "Cs") else character for character in text)[:max_characters]


def clean_name(by: str) -> str:
    """Return the name of a person as entries keep it."""
    return clean_text(by, _MAX_NAME_CHARS)


def validate_reason(reason: str, action: str) -> str:
    """Return the reason on one line.

    Raises:
        BadInput: if it is empty, longer than the log keeps, or has characters that no text has.
    """
    text = " ".join(reason.split())
    if not text:
        raise BadInput(f"a {action} needs a reason", hint='add --reason "..."')
    if len(text) > _MAX_REASON_CHARS:
        raise BadInput(
            f"the reason has {len(text)} characters, the log keeps {_MAX_REASON_CHARS}", hint="shorten it, or link to a document"
        )
    if clean_text(text) != text:
        raise BadInput("the reason has control characters, or is not text in UTF-8", hint="write it as plain text")
    return text
