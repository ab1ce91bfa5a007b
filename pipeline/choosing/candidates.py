"""Which weights of a training can be scored: EMAs in its checkpoints, in its snapshots, and others that its snapshots add up to.

Promises: a pure function of a listing of the store and of what was asked for; what does not exist is refused by name, with what exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from components.errors import BadInput
from components.reports.listing import list_some, list_steps
from components.storage import StoreUri
from components.storage.reader import StoreReader
from components.stores.checkpoint_names import checkpoint_folder, committed_checkpoints
from components.stores.layout import RunLayout
from model.ema import EmaName

MOST_CANDIDATES = 64
"""A table that a person reads, and hours rather than days on a GPU."""


@dataclass(frozen=True)
class Candidate:
    """One EMA at one step of a training."""

    step: int
    ema: EmaName
    uri: StoreUri | None
    """The checkpoint, snapshot or stored average that holds it; None for one that is to be computed from snapshots."""


@dataclass
class StoredWeights:
    """The EMAs of a training in object storage."""

    by_step: dict[int, dict[EmaName, StoreUri]] = field(default_factory=dict)
    snapshot_steps: set[int] = field(default_factory=set)

    @classmethod
    def find(cls, run: RunLayout, store: StoreReader) -> "StoredWeights":
        """List what `run` has. Of the same EMA at a step a checkpoint comes before a snapshot: it is what the pipeline registers."""
        stored = cls()
        for home in (run.averages, run.snapshots, run.checkpoints):
            names = [item.uri for item in store.list(home)]
            committed = {entry.uri: entry.step for entry in committed_checkpoints(names)}
            for uri in sorted(names, key=str):
                folder, name = checkpoint_folder(uri), EmaName.from_file(uri.name)
                if folder in committed and name is not None and name.sigma_rel is not None:
                    stored.by_step.setdefault(committed[folder], {})[name] = folder
            if home == run.snapshots:
                stored.snapshot_steps |= set(committed.values())
        return stored


def choose_candidates(
    run_key: str, stored: StoredWeights, *, steps: Sequence[int], widths: Sequence[float], tracked: Sequence[float]
) -> list[Candidate]:
    """Return the candidates of all `steps` and `widths`; without any, of all steps that are stored and of the `tracked` widths.

    Raises:
        BadInput: if a step has no weights, a width cannot be computed at a step, or there are more than `MOST_CANDIDATES`.
    """
    if not stored.by_step:
        raise BadInput(f"run {run_key} has no checkpoint or snapshot yet", hint="wait for its first one, or name another run")
    if missing := sorted(set(steps) - stored.by_step.keys()):
        plural = "s" if len(missing) > 1 else ""
        raise BadInput(
            f"run {run_key} has no checkpoint or snapshot of step{plural} {list_steps(missing)}",
            hint=f"it has steps {list_steps(stored.by_step)}",
        )
    chosen_steps = sorted(set(steps) or stored.by_step)
    names = list(dict.fromkeys(EmaName.of_width(width) for width in sorted(set(widths) or set(tracked))))
    if not names:
        raise BadInput(f"run {run_key} tracks no power-function EMA", hint="name widths with --sigma-rel")
    if (count := len(chosen_steps) * len(names)) > MOST_CANDIDATES:
        raise BadInput(
            f"{len(chosen_steps)} steps with {len(names)} EMA widths are {count} combinations, at most {MOST_CANDIDATES} are scored",
            hint=f"name fewer with --steps and --sigma-rel; the run has steps {list_steps(stored.by_step)}",
        )
    return [_candidate(run_key, stored, step, name) for step in chosen_steps for name in names]


def _candidate(run_key: str, stored: StoredWeights, step: int, name: EmaName) -> Candidate:
    held = stored.by_step[step]
    if name not in held and step not in stored.snapshot_steps:
        raise BadInput(
            f"run {run_key} has no EMA of width {name} at step {step}, only {list_some(sorted(map(str, held)))}",
            hint=f"other widths are computed at steps with an EMA snapshot: {list_steps(stored.snapshot_steps)}",
        )
    return Candidate(step, name, held.get(name))
