"""What ended attempts at a training left incomplete in object storage: checkpoints without a commit, and uploads in parts.

Promises: what an attempt that lives is writing is kept, or written again by it (`CheckpointStore.remove_abandoned`); where nothing may be
deleted, that is noted and nothing fails.
"""

from collections.abc import Sequence

from components.errors import CelebditError
from components.reports.plural import plural
from components.runtime.context import StepContext
from components.stores.abandoned_uploads import abort_old_uploads
from components.stores.checkpoints import CheckpointStore
from components.train.spec import TrainSpec


def remove_leftovers(spec: TrainSpec, homes: Sequence[CheckpointStore], context: StepContext, *, ended: str | None = None) -> None:
    """Remove from `homes` what attempts before that of `spec`, and `ended`, left incomplete, and old uploads of the run; note how much."""
    note = context.events.note
    try:
        removed = sum(home.remove_abandoned(before=spec.attempt, ended=ended) for home in homes)
        removed += abort_old_uploads(context.store, context.layout.run(spec.run_key).prefix)
    except CelebditError as error:
        note(f"incomplete uploads of ended attempts were not removed: {error.message}")
        return
    if removed:
        note(f"{plural(removed, 'incomplete upload')} of ended attempts {'was' if removed == 1 else 'were'} removed")
