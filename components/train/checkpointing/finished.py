"""The checkpoint of a run's last step: looked for, and verified before it counts as the result.

Promises: a run is finished only if a checkpoint of its last step is intact, every byte of it, has the state of this run, and holds every
average that the recipe names; one that is not is quarantined, so that training continues from the one before. One that was stored by a
stop within the score of the last step does not count while scores are configured: training continues from it.
"""

from dataclasses import dataclass

from components.errors import BadInput
from components.storage import DigestMismatch, ObjectMissing, StoreUri
from components.stores.checkpoints import CheckpointStore, OtherFormat
from components.train.spec import differences
from model.checkpoint_manifest import CheckpointInvalid
from model.config import Recipe, TrainingConfig
from model.ema import CLASSIC_EMA, RAW_WEIGHTS, EmaName


@dataclass(frozen=True)
class Finished:
    """The checkpoint of a run's last step."""

    uri: StoreUri
    digest: str
    step: int


def find_finished(checkpoints: CheckpointStore, recipe: Recipe, dataset_digest: str, *, is_new: bool = False) -> Finished | None:
    """Return the checkpoint of the last step, or None if no intact one exists whose score is not due.

    One that `is_new` was verified when it was uploaded.

    Raises:
        BadInput: if the run was trained beyond its last step, or another version wrote the checkpoint.
    """
    total_steps = recipe.training.total_steps
    committed = checkpoints.list_committed()
    for entry in committed:
        if entry.step != total_steps:
            continue
        try:
            if recipe.training.is_milestone(entry.step) and recipe.training.is_score_due(entry.step, checkpoints.notes(entry.uri)):
                continue
            if not is_new:
                _verify(checkpoints, entry.uri, recipe, dataset_digest)
            return Finished(uri=entry.uri, digest=checkpoints.digest(entry.uri), step=entry.step)
        except OtherFormat as error:
            raise BadInput(error.message, hint="continue with the version that began the run, or begin a new run") from error
        except (ObjectMissing, DigestMismatch, CheckpointInvalid) as problem:
            checkpoints.quarantine(entry.uri, str(problem))
    if committed and all(entry.step > total_steps for entry in committed):
        raise BadInput(
            f"this run was trained beyond training.total_steps {total_steps} before, to step {committed[0].step}",
            hint=f"set training.total_steps={committed[0].step} or more",
        )
    return None


def _verify(checkpoints: CheckpointStore, uri: StoreUri, recipe: Recipe, dataset_digest: str) -> None:
    entries = checkpoints.verify(uri)
    if missing := sorted({name.file for name in weights_of(recipe.training)} - set(entries)):
        raise CheckpointInvalid(f"{uri} does not hold {', '.join(missing)}")
    if lines := differences(checkpoints.state(uri).get("identity"), recipe.identity(dataset_digest)):
        raise CheckpointInvalid(f"{uri} is of another run: {'; '.join(lines[:5])}")


def weights_of(training: TrainingConfig) -> list[EmaName]:
    """Return the weights that a checkpoint of a training holds: the raw ones and every average."""
    classic = [] if training.ema_decay is None else [CLASSIC_EMA]
    return [RAW_WEIGHTS, *map(EmaName.of_width, training.ema_sigma_rel), *classic]
