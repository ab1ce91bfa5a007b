"""What a store holds, as lines and as JSON."""

from typing import Any

from components.reports.columns import align_columns
from components.reports.listing import list_some
from components.stores.usage import FOREIGN, PARTS, Stored, StoredRun, Usage
from pipeline.planning.report import size
from pipeline.stored.references import References
from pipeline.view import printable

_MOST_REFERENCES = 3
_UNNAMED = "other"
_DESCRIPTIONS = {
    "weights": "weights of the metrics' networks",
    "versions": "manifests of registered versions",
    "models": "registered versions, exported for KServe",
    "sweeps": "records of sweeps",
    "speeds": "speeds of trainings, for `celebdit plan`",
    "requests": "which dataset an ingest made",
    "references": "features of datasets that are not stored",
    "checksums": "digests of pages",
    "quarantine": "damaged objects that were replaced",
    FOREIGN: "not in celebdit's layout",
}


def report_lines(usage: Usage, references: References) -> list[str]:
    """Return what the store holds: runs and datasets, the largest first, and the rest."""
    lines = []
    if usage.runs:
        rows = [_run_row(key, run, references) for key, run in _largest_first(usage.runs)]
        lines += ["runs", *(f"  {line}" for line in align_columns(rows))]
    if usage.datasets:
        rows = [_dataset_row(name, digest, stored, references) for (name, digest), stored in _largest_first(usage.datasets)]
        lines += ["datasets, with the features computed of them", *(f"  {line}" for line in align_columns(rows))]
    if usage.others:
        rows = [(kind, size(stored.size_bytes), _DESCRIPTIONS[kind]) for kind, stored in _largest_first(usage.others)]
        lines += ["others", *(f"  {line}" for line in align_columns(rows))]
    if references.unknown:
        lines.append(f"what these runs were trained on is not known, their specifications cannot be read: {list_some(references.unknown)}")
    return lines


def report_json(usage: Usage, references: References) -> dict[str, Any]:
    """Return the same as JSON; times are those of the store."""
    return {
        "size_bytes": usage.size_bytes,
        "runs": [
            {
                "run_key": key,
                **_facts(run),
                "state": references.states.get(key),
                "parts": part_sizes(run),
                "versions": [
                    {"model": version.model, "version": version.number, "aliases": list(version.aliases)}
                    for version in references.versions.get(key, [])
                ],
                "students": references.students.get(key, []),
            }
            for key, run in _largest_first(usage.runs)
        ],
        "datasets": [
            {"name": name, "digest": digest, **_facts(stored), "runs": references.trainings.get(digest, [])}
            for (name, digest), stored in _largest_first(usage.datasets)
        ],
        "others": {kind: _facts(stored) for kind, stored in _largest_first(usage.others)},
    }


def part_sizes(run: StoredRun) -> dict[str, int]:
    """Return the bytes of each part that a run has, and of the small ones together as `other`."""
    sizes = {part: run.parts[part].size_bytes for part in PARTS if part in run.parts}
    rest = run.size_bytes - sum(sizes.values())
    return sizes | ({_UNNAMED: rest} if rest else {})


def part_text(run: StoredRun) -> str:
    """Return the parts of a run with their sizes."""
    return ", ".join(f"{part} {size(num_bytes)}" for part, num_bytes in part_sizes(run).items())


def _run_row(key: str, run: StoredRun, references: References) -> tuple[str, ...]:
    versions = [str(version) for version in references.versions.get(key, [])]
    students = [f"teacher of {student}" for student in references.students.get(key, [])]
    used = list_some([printable(text) for text in versions + students], most=_MOST_REFERENCES)
    return (key, _day(run), printable(references.states.get(key, "not in MLflow")), size(run.size_bytes), part_text(run), used)


def _dataset_row(name: str, digest: str, stored: Stored, references: References) -> tuple[str, ...]:
    runs = references.trainings.get(digest, [])
    used = f"trained on by {list_some(runs, most=_MOST_REFERENCES)}" if runs else "trained on by no stored run"
    return (printable(name), digest[:16], _day(stored), size(stored.size_bytes), used)


def _day(stored: Stored) -> str:
    return "-" if stored.written is None else f"{stored.written:%Y-%m-%d}"


def _facts(stored: Stored) -> dict[str, Any]:
    return {
        "size_bytes": stored.size_bytes,
        "objects": len(stored.objects),
        "written": None if stored.written is None else stored.written.isoformat(),
    }


def _largest_first(group: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(group.items(), key=lambda item: (-item[1].size_bytes, item[0]))
