"""Start the worker processes of one evaluation, or once for several, which saves their start and that of the network library.

Promises: an evaluation whose images were processed, in a start for several or by a killed command, is not processed again.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from components.evaluate.spec import EvaluateSpec
from components.manifests import Manifest
from components.runtime.context import StepContext
from components.runtime.launch import launch

SPEC_FILE = "spec.json"
BATCH_FILE = "batch.json"
_PROCESSED_FILE = "processed"


class EvaluateBatch(Manifest):
    """Several evaluations for the same worker processes."""

    kind: Literal["evaluate-batch"] = "evaluate-batch"
    folders: list[str]
    """Each has the specification of one, its weights, and gets its features."""


def run_workers(specs: Mapping[Path, EvaluateSpec], context: StepContext) -> None:
    """Process the images of the evaluations `specs`, by the folder of each, and wait for the end; the first one's resources count.

    Raises:
        CelebditError: as `launch` does.
    """
    waiting = {}
    for folder, spec in specs.items():
        spec.dump(folder / SPEC_FILE)
        if not _is_processed(folder):
            waiting[folder] = spec
    if not waiting:
        return
    first, spec = next(iter(waiting.items()))
    path = first / SPEC_FILE
    if len(waiting) > 1:
        path = first / BATCH_FILE
        EvaluateBatch(folders=[str(folder.absolute()) for folder in waiting]).dump(path)
    resources = spec.resources
    launch(
        "components.evaluate.worker",
        path,
        work_dir=context.settings.work_dir,
        processes=resources.processes,
        threads=resources.threads,
    )
    for folder in waiting:
        (folder / _PROCESSED_FILE).write_text(_digest(folder))


def process_again(folder: Path) -> None:
    """Let `run_workers` look again for what the evaluation in `folder` lacks."""
    (folder / _PROCESSED_FILE).unlink(missing_ok=True)


def _is_processed(folder: Path) -> bool:
    processed = folder / _PROCESSED_FILE
    return processed.exists() and processed.read_text() == _digest(folder)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / SPEC_FILE).read_bytes()).hexdigest()
