"""Find the runs, datasets and damaged objects that a deletion names, with what speaks against it, and delete them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from components.errors import BadInput
from components.reports.listing import list_some
from components.reports.plural import plural
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.storage.bucket import is_versioned
from components.storage.skew import now, server_time
from components.stores.abandoned_uploads import abort_old_uploads
from components.stores.deletion import delete_objects
from components.stores.usage import Stored, StoredRun, Usage, usage_of
from components.tracking.training_names import find_run_key
from pipeline.planning.report import size
from pipeline.stored.references import References, read_references
from pipeline.stored.removal import parts_of, reasons_to_keep_dataset, reasons_to_keep_run
from pipeline.stored.report import part_text

_FEWEST_CHARACTERS = 4
_QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Request:
    """What was asked for, as people write it."""

    runs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    """Of each of the runs; all of them if there are none here."""
    datasets: tuple[str, ...] = ()
    quarantine: bool = False


@dataclass(frozen=True)
class Target:
    """One thing to delete."""

    name: str
    stored: Stored
    prefixes: tuple[StoreUri, ...]
    """What the keys of its objects begin with, and those of uploads in parts that would have become objects of it."""
    reasons: tuple[str, ...] = ()
    """Why it should stay."""
    notes: tuple[str, ...] = ()
    """What follows from deleting it."""

    @property
    def summary(self) -> str:
        """What it is and how much it holds."""
        return f"{self.name}: {size(self.stored.size_bytes)} in {plural(len(self.stored.objects), 'object')}"


def store_usage(context: StepContext) -> Usage:
    """List all objects of the store by what they belong to."""
    return usage_of(context.store.list(context.root), context.root)


def find_targets(request: Request, context: StepContext) -> list[Target]:
    """Look up what a request names, each thing once.

    Raises:
        BadInput: if something that it names is not in the store, or a short name fits several.
    """
    usage = store_usage(context)
    references = read_references(usage.runs, context.store, context.tracking)
    at = _store_time(context)
    keys = dict.fromkeys(_run_key(name, usage, context) for name in request.runs)
    if not request.parts:
        references = references.without(keys)
    targets = [_run_target(key, usage.runs[key], request.parts, references, context, at) for key in keys]
    for dataset in dict.fromkeys(dataset for name in request.datasets for dataset in _datasets(name, usage)):
        prefixes = (context.layout.dataset(dataset[0]) / dataset[1],)
        reasons = reasons_to_keep_dataset(dataset[1], usage.datasets[dataset], references, at)
        targets.append(Target(f"dataset {dataset[0]} {dataset[1][:16]}", usage.datasets[dataset], prefixes, tuple(reasons)))
    if request.quarantine:
        targets.append(Target("quarantine", usage.others[_QUARANTINE], (context.layout.quarantine,)))
    return targets


def delete_targets(targets: Iterable[Target], context: StepContext) -> None:
    """Delete the objects of all targets, and abort uploads of theirs that began more than a day ago."""
    for target in targets:
        delete_objects(context.store, [item.uri for item in target.stored.objects])
        for prefix in target.prefixes:
            abort_old_uploads(context.store, prefix)


def keeps_versions(context: StepContext) -> bool:
    """Return whether the bucket keeps what is deleted as a version."""
    return is_versioned(context.store, context.root.bucket) is True


def _run_target(key: str, run: StoredRun, parts: tuple[str, ...], references: References, context: StepContext, at: datetime) -> Target:
    stored = parts_of(run, parts)
    reasons = reasons_to_keep_run(key, run, parts, references, at)
    versions = references.versions.get(key, [])
    notes = [f"{list_some([str(version) for version in versions])} keeps its own files"] if versions and not parts else []
    name = f"{', '.join(parts)} of run {key}" if parts else f"run {key} ({part_text(run)})"
    prefix = context.layout.run(key).prefix
    prefixes = tuple(prefix / part for part in parts) or (prefix,)
    return Target(name, stored, prefixes, tuple(reasons), tuple(notes))


def _run_key(name: str, usage: Usage, context: StepContext) -> str:
    """Return the key of a stored run: the name itself, the one key that it begins, or that of the MLflow run or run id it is."""
    if name in usage.runs:
        return name
    matches = [key for key in sorted(usage.runs) if key.startswith(name)] if len(name) >= _FEWEST_CHARACTERS else []
    key = _only(matches, name, "run keys") if matches else find_run_key(name, context.tracking)
    if key not in usage.runs:
        raise BadInput(f"the store has no run {name!r}", hint=f"it has {list_some(sorted(usage.runs)) or 'none'}: `celebdit storage list`")
    return key


def _datasets(name: str, usage: Usage) -> list[tuple[str, str]]:
    """Return the names and digests of the stored datasets whose one digest begins with `name`: the same images may have several names."""
    matches = (
        [(label, digest) for label, digest in sorted(usage.datasets) if digest.startswith(name)] if len(name) >= _FEWEST_CHARACTERS else []
    )
    if not matches:
        known = list_some([digest[:16] for _, digest in sorted(usage.datasets)]) or "none"
        raise BadInput(f"the store has no dataset {name!r}", hint=f"it has {known}: `celebdit storage list`")
    _only(sorted({digest for _, digest in matches}), name, "digests")
    return matches


def _only(matches: list[str], name: str, what: str) -> str:
    if len(matches) > 1:
        raise BadInput(f"{name!r} begins {len(matches)} {what}: {list_some(matches)}", hint="give more of its characters")
    return matches[0]


def _store_time(context: StepContext) -> datetime:
    """Return the time by the clock of the store, which stamps objects; by this machine's if it does not say."""
    root = context.root
    answer = context.store.call(
        "list", root, lambda: context.store.client.list_objects_v2(Bucket=root.bucket, Prefix=f"{root.key}/".lstrip("/"), MaxKeys=1)
    )
    return server_time(answer) or now()
