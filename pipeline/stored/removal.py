"""What speaks against deleting a run or a dataset, or some parts of a run; what does not is deleted without being asked for twice.

Promises: pure functions of what was looked up.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from components.reports.listing import list_some
from components.reports.plural import plural
from components.stores.usage import JOURNAL, PARTS, Stored, StoredRun
from pipeline.stored.references import References

RECENT = timedelta(hours=1)
"""What was written later may be in use: a training writes a checkpoint more often."""
_REPEATABLE = {"samples", "averages"}
"""Parts that evaluations and `celebdit ema` make again from the others."""
_TEACHING = {"checkpoints", "snapshots"}
"""Parts that the weights of a teacher are read from (`train/teacher_weights.py`): an earlier step of it has a snapshot alone."""


def parts_of(run: StoredRun, parts: Collection[str]) -> Stored:
    """Return the objects of the named parts of a run; of all of it if none is named."""
    if not parts:
        return run
    return Stored([item for part in parts if part in run.parts for item in run.parts[part].objects])


def reasons_to_keep_run(key: str, run: StoredRun, parts: Collection[str], references: References, now: datetime) -> list[str]:
    """Return why the parts of a run, or all of it, should stay; nothing if they can go."""
    reasons = [*_if_running(references.running.get(key, [])), *_if_recent(run, now)]
    if not parts and JOURNAL in run.parts:
        reasons.append(f"{plural(len(run.parts[JOURNAL].objects), 'object')} of its journal did not reach MLflow: `celebdit sync {key}`")
    if key in references.students and (not parts or _TEACHING & set(parts)):
        reasons.append(f"it is the teacher of {list_some(references.students[key])}")
    pointed = [version for version in references.versions.get(key, []) if version.aliases]
    if pointed and not set(parts or PARTS) <= _REPEATABLE:
        reasons.append(f"{list_some([str(version) for version in pointed])} comes from it")
    return reasons


def reasons_to_keep_dataset(digest: str, stored: Stored, references: References, now: datetime) -> list[str]:
    """Return why a dataset should stay; nothing if it can go."""
    reasons = [*_if_running(references.readers.get(digest, [])), *_if_recent(stored, now)]
    if digest in references.trainings:
        reasons.append(f"runs that are stored were trained on it: {list_some(references.trainings[digest])}")
    if references.unknown:
        reasons.append(f"what these runs were trained on is not known: {list_some(references.unknown)}")
    return reasons


def _if_running(names: Sequence[str]) -> list[str]:
    return [f"MLflow says that {list_some(names)} is running"] if names else []


def _if_recent(stored: Stored, now: datetime) -> list[str]:
    if stored.written is None or now - stored.written >= RECENT:
        return []
    return [f"it was written {plural(max(0, int((now - stored.written).total_seconds() // 60)), 'minute')} ago"]
